"""What a training takes of its machine, under the names that MLflow gives to system metrics."""

from __future__ import annotations

import psutil
import torch

MEGABYTE = 1e6


class SystemMetrics:
    """Samples the load of the machine since the sample before, its memory and disk, and the GPU's memory.

    Args:
        device: where this process computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.process = psutil.Process()
        psutil.cpu_percent()  # the first call has nothing before it to compare with
        self.network = psutil.net_io_counters()

    def sample(self) -> dict[str, float]:
        """Numbers by name; megabytes are millions of bytes."""
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage("."), psutil.net_io_counters()
        numbers = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": self.process.memory_info().rss / MEGABYTE,
            "disk_available_megabytes": disk.free / MEGABYTE,
            "disk_usage_percentage": disk.percent,
        }
        if network and self.network:  # a machine may have none
            numbers |= {
                "network_receive_megabytes": (network.bytes_recv - self.network.bytes_recv) / MEGABYTE,
                "network_transmit_megabytes": (network.bytes_sent - self.network.bytes_sent) / MEGABYTE,
            }
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            numbers |= {
                "gpu_memory_usage_megabytes": (total - free) / MEGABYTE,
                "gpu_memory_usage_percentage": 100 * (total - free) / total,
                "gpu_memory_peak_megabytes": torch.cuda.max_memory_reserved(self.device) / MEGABYTE,
            }
        self.network = network
        return numbers

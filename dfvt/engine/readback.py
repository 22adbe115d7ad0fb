"""What a training was built with, read back from its parts: a trial's label must be what it trains with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmcv.cnn.bricks.drop import DropPath
from mmcv.runner import LrUpdaterHook
from torch import nn

from dfvt.engine.hooks import OptimizerStep
from dfvt.engine.resume import bare_model
from dfvt.engine.runner import DetectorRunner


def require_settings(runner: DetectorRunner, expected: Mapping[str, Any]) -> tuple[str, ...]:
    """Compares config keys' values with those of the built model, optimiser, schedule and sampler.

    Returns the keys that cannot be read back, because nothing keeps their value.

    Raises:
        ValueError: a part was built with another value.
    """
    not_read_back = []
    for key, value in expected.items():
        found = list(settings_of(runner, key))
        if not found:
            not_read_back.append(key)
        elif not any(plain(value) == plain(one) for one in found):
            raise ValueError(f"the training was built with {key} = {found[0]!r}, not with {value!r}")
    return tuple(not_read_back)


def settings_of(runner: DetectorRunner, key: str) -> Iterable[Any]:
    """The values that the built parts have for a config key: one, or those of all parameter groups."""
    section, _, rest = key.partition(".")
    names = rest.split(".")
    if section == "optimizer":
        if rest == "type":
            return [type(runner.optimizer).__name__]
        return [group[rest] for group in runner.optimizer.param_groups if rest in group]
    if section == "lr_config":
        schedules = [hook for hook in runner.hooks if isinstance(hook, LrUpdaterHook)]
        return [value for hook in schedules for value in walk(hook, names)]
    if section == "optimizer_config":
        steps = [hook for hook in runner.hooks if isinstance(hook, OptimizerStep)]
        return [value for hook in steps for value in walk(hook, names)]
    if section == "model":
        return settings_of_model(bare_model(runner), names)
    others = {
        "runner.max_epochs": runner.max_epochs,
        "data.samples_per_gpu": runner.sampler.batch_size,
    }
    return [others[key]] if key in others else []


def settings_of_model(model: nn.Module, names: list[str]) -> Iterable[Any]:
    """An attribute of the model or of one of its parts; the rate of drop path is that of the last block."""
    *path, name = names
    if name == "drop_path_rate":
        parts = [part for part in walk(model, path) if isinstance(part, nn.Module)]
        return [
            max(module.drop_prob for module in part.modules() if isinstance(module, DropPath))
            for part in parts
        ]
    return [value for value in walk(model, names) if not isinstance(value, nn.Module)]


def walk(value: Any, names: list[str]) -> list[Any]:
    """The attribute, item or element that the names lead to, in a list; an empty one if they lead nowhere."""
    for name in names:
        try:
            if isinstance(value, Mapping):
                value = value[name]
            elif name.isdigit():
                value = value[int(name)]
            else:
                value = getattr(value, name)
        except (KeyError, IndexError, TypeError, AttributeError):
            return []
    return [value]


def plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value

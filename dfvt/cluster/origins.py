"""What a training's run keeps of the project and the data set that it began with."""

from __future__ import annotations

from dfvt.data.manifest import DatasetManifest
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.origin import Origin, TrainingData, record_origin


def keep_origin(recorder: RunRecorder, origin: Origin, manifest: DatasetManifest) -> None:
    """Keep with a run what it began with. Raises as `RunRecorder.log_curve` does."""
    data = TrainingData(
        name=manifest.name,
        data_hash=manifest.data_hash,
        source=manifest.root.absolute(),
        num_images=manifest.num_train_images,
        classes=manifest.classes,
    )
    record_origin(recorder, origin, data)

"""Stands for Ray and MLflow: a training in this process, a recorder that refuses what MLflow refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch


class Recorder:
    """Stands for an MLflow run: refuses what MLflow refuses, keeps the names of metrics."""

    uri, run_id = "sqlite:///mlflow.db", "0" * 32

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        for name, value in metrics.items():
            require_metric_name(name)
            self.metrics[name] = float(value)

    def log_curve(self, points: Any) -> None:
        for step, metrics in points:
            self.log_metrics(metrics, step)

    def log_artifacts(self, files: Path, folder: str | None = None) -> None:
        assert files.is_dir(), files

    def log_artifact(self, file: Path, folder: str | None = None) -> None:
        assert file.is_file(), file

    def last_step(self, name: str) -> int:
        return -1

    def tag(self, name: str) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def require_metric_name(name: str) -> None:
    """Asserts that MLflow takes the name of a metric; asks MLflow itself too if it is installed."""
    assert re.fullmatch(r"[/\w.\- :]{1,250}", name), f"the metric name {name!r}"
    parts = name.split("/")
    assert not {"", ".", ".."}.intersection(parts), f"the metric name {name!r} is no path"
    with suppress(ImportError):
        from mlflow.utils.validation import _validate_metric_name

        _validate_metric_name(name)


def require_model_name(name: str) -> None:
    """Asserts that MLflow's registry takes a name, and that `models:/NAME@ALIAS` can hold it."""
    assert name.strip() and not {"/", ":", "@"}.intersection(name), f"the model name {name!r}"
    assert name not in (".", ".."), f"the model name {name!r}"
    assert len(name) <= 256, f"the model name {name!r} has {len(name)} characters"
    with suppress(ImportError):
        from mlflow.utils.validation import _validate_model_name

        _validate_model_name(name)


def stand_in_for_mlflow(patches: ExitStack, recorder: Recorder) -> None:
    """Lets the stages file their results with `recorder`."""

    def open_run(settings: Any, values: Any, file: Path, lineage: Any, *_: Any, **__: Any) -> Recorder:
        note = {"mlflow_run_id": recorder.run_id, "tracking_uri": recorder.uri, "tags": lineage}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(note))
        return recorder

    def log_model(_: Recorder, *, files: Any, example: Path, **__: Any) -> str:
        assert all(file.is_file() for file in files)
        assert example.read_bytes(), example
        return "runs:/0/model"

    def register_model(_: Recorder, name: str, **__: Any) -> Any:
        require_model_name(name)
        return type("Version", (), {"aliases": ["champion"], "version": 1})

    patches.enter_context(patch("pipelines.train.open_run", open_run))
    patches.enter_context(patch("pipelines.train.collect_lineage", lambda *_, **tags: {"git.commit": "none"}))
    patches.enter_context(patch("dfvt.tracking.deferred.attach_noted", lambda *_: recorder))
    patches.enter_context(patch("dfvt.tracking.models.log_model", log_model))
    patches.enter_context(patch("dfvt.tracking.models.register_model", register_model))


def save_time(patches: ExitStack, *, all_figures: bool) -> None:
    """Leaves out what takes long and does not depend on the data set.

    That is the layout of the text of configs, which is compiled instead, the size of pictures, and unless
    `all_figures` three figures without the names of classes.
    """

    def compiled(text: str, **_: Any) -> tuple[str, bool]:
        compile(text, "config", "exec")
        return text, True

    def touch(*arguments: Any) -> None:
        arguments[-1].parent.mkdir(parents=True, exist_ok=True)
        arguments[-1].touch()

    for module in ("mmcv.utils.config", "dfvt.engine.config_text"):
        if find_spec(module):
            patches.enter_context(patch(f"{module}.FormatCode", compiled))
    for module in ("figures", "gallery"):
        patches.enter_context(patch(f"dfvt.reports.{module}.DPI", 40))
    patches.enter_context(patch("dfvt.reports.gallery.GALLERY_CELL", (160, 140)))
    patches.enter_context(patch("dfvt.reports.gallery.OVERVIEW_CELL", (120, 100)))
    if not all_figures:
        for name in ("plot_learning_curves", "plot_precision_recall", "plot_errors"):
            patches.enter_context(patch(f"pipelines.report.{name}", touch))


def complexity(*_: Any) -> Any:
    """Any numbers: counting takes longer than a training."""
    from dfvt.models.complexity import Complexity

    return Complexity(1, 1, 1, 1, (32, 32), {})


def train_here(job: Any, callbacks: Any = (), stop: Any = None, workers: Any = None) -> None:
    """`dfvt.cluster.train.run_training` in this process, as its worker trains."""
    from mmcv import Config

    from dfvt.engine.curves import CurveFiles
    from dfvt.engine.train import train

    cfg = Config.fromstring(job.config, ".py")
    listeners = [CurveFiles(job.work_dir), *callbacks]
    train(cfg, job.work_dir, seed=job.seed, callbacks=listeners, meta=job.lineage, expected=job.expected)

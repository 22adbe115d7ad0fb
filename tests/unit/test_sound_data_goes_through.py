"""What `dfvt data check` calls sound goes through every stage, whatever its names, paths and images are."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.fuzz.data_sets import DataSet, DrawnObject, ImageFile, Split, as_json, from_json
from tests.fuzz.pools import CLASS_NAMES
from tests.fuzz.stages import Outcome, go_through
from tests.fuzz.strategies import data_sets

NUM_DRAWS = int(
    os.environ.get("DFVT_FUZZ_DRAWS", "50")
)  # `python -m tests.fuzz` draws others, in many processes


@given(data=data_sets())
@settings(
    max_examples=NUM_DRAWS,
    derandomize=True,  # the suite says the same each time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_sound_data_goes_through(
    one_thread: None, tmp_path_factory: pytest.TempPathFactory, data: DataSet
) -> None:
    assert from_json(as_json(data)) == data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        event(go_through(data, Path(tmp_path_factory.mktemp("fuzz"))).kind)


def split(name: str, num_classes: int) -> Split:
    """Two images in sub-folders, on which each class has an object."""
    images = tuple(
        ImageFile(number, f"cam{number}/a.jpg", f"cam{number}/a.jpg", ("JPEG", "RGB"), 64, 48)
        for number in (1, 2)
    )
    objects = tuple(
        DrawnObject(index + 1, index % 2, index, (5.0, 5.0, 40.0, 30.0)) for index in range(num_classes)
    )
    return Split(f"annotations/{name}.json", name, images, objects)


def test_every_class_has_a_metric_in_a_real_store(
    one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    data = DataSet(
        project="a project",
        root="data",
        absolute=False,
        categories=tuple(enumerate(CLASS_NAMES, 1)),
        train=split("train", len(CLASS_NAMES)),
        val=split("val", len(CLASS_NAMES)),
        settings={
            "tracking": {"experiment": "team/shelves: été"},
            "evaluate": {"num_gallery_images": 1, "score_threshold": 0.0},
        },
    )
    assert go_through(data, tmp_path / "fuzz", stand_ins=False) == Outcome("sound")

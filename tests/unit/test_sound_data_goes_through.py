"""What `dfvt data check` calls sound goes through every stage, whatever its names, paths and images are."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.fuzz.data_sets import DataSet, as_json, from_json
from tests.fuzz.stages import go_through
from tests.fuzz.strategies import data_sets

NUM_DRAWS = int(
    os.environ.get("DFVT_FUZZ_DRAWS", "50")
)  # `python -m tests.fuzz` draws others, in many processes


@given(data=data_sets())
@settings(
    max_examples=NUM_DRAWS,
    deadline=None,
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

"""The pace of an evaluation is the median time of an image."""

import pytest

from dfvt.engine.pace import Pace


def test_the_pace_is_the_median_time_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 5.1, 5.4, 5.6])
    monkeypatch.setattr("dfvt.engine.pace.time.perf_counter", lambda: next(clock))
    handed_on: list[tuple[int, int]] = []
    pace = Pace(lambda done, total: handed_on.append((done, total)))
    pace(1, 5)
    assert pace.ms_per_image is None
    for done in (2, 3, 4, 5):
        pace(done, 5)
    assert pace.ms_per_image == pytest.approx(250)  # of 5000, 100, 300, 200
    assert handed_on == [(done, 5) for done in range(1, 6)]


def test_images_that_passed_together_took_a_share_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 9.0])
    monkeypatch.setattr("dfvt.engine.pace.time.perf_counter", lambda: next(clock))
    pace = Pace()
    for done in (8, 16, 17):
        pace(done, 17)
    assert pace.ms_per_image == pytest.approx(500)  # eight of 500, one of 5000

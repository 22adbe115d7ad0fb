"""The model of many hosts agrees with what it was made from, and with what must be so."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.arguments import counts, positive, whole, workers
from benchmarks.processes import FailedProcessError
from benchmarks.scaling_model import (
    COUNTS,
    Measured,
    between_hosts,
    lateness,
    plot,
    predict,
    read,
    remedies,
)

HOST = Measured(4, 0.03, 0.001, 180e6, 0.002, 2)


def rows() -> list[dict[str, object]]:
    common = {"variant": "tiny", "batch": 4, "gradient_bytes": 180e6}
    return [
        {**common, "gpus": 1, "images_per_second": 100.0},
        {**common, "gpus": 2, "images_per_second": 160.0, "gradients_share": 0.1},
    ]


def test_measured_speeds_come_back(tmp_path: Path) -> None:
    (tmp_path / "scaling.json").write_text(json.dumps(rows()))
    measured, _ = read(tmp_path / "scaling.json", "tiny")
    assert predict(measured, 1, 200, 8).images_per_second == pytest.approx(100)
    assert predict(measured, 2, 200, 2).images_per_second == pytest.approx(160)
    assert measured.exchange_seconds == pytest.approx(0.005)
    assert measured.late_seconds == pytest.approx(0.005)


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 2)])
def test_what_was_not_measured_is_asked_for(tmp_path: Path, kept: slice) -> None:
    (tmp_path / "scaling.json").write_text(json.dumps(rows()[kept]))
    with pytest.raises(ValueError, match="run benchmarks"):
        read(tmp_path / "scaling.json", "tiny")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "it is not what benchmarks"),
        ("[1]", "it is not what benchmarks"),
        ("[{}]", "it lacks tiny on one GPU"),
        ('[{"variant": "tiny"}]', "gpus of tiny is None, and must be a number"),
        ('[{"variant": "tiny", "gpus": "x"}]', "gpus of tiny is 'x', and must be a number"),
        ("no JSON", "Expecting value"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "scaling.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "scaling.json", "tiny")


@pytest.mark.parametrize("text", ["-1", "two", "1.5", ""])
def test_loader_processes_are_a_whole_number_from_zero(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="whole number from 0"):
        workers(text)
    assert workers("0") == 0


@pytest.mark.parametrize("text", ["0", "two", "1,,2", "-1", "1,2.5", ""])
def test_counts_of_gpus_are_whole_numbers_from_one(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="whole numbers from 1"):
        counts(text)


def test_each_count_comes_once_in_the_order_given() -> None:
    assert counts("4,1, 4,2") == [4, 1, 2]


@pytest.mark.parametrize("text", ["0", "-5", "nan", "inf", "many", ""])
def test_numbers_that_are_not_above_0_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="must be a"):
        positive(text)
    with pytest.raises(ArgumentTypeError, match="must be a"):
        whole(text)


def test_a_process_that_failed_is_quoted_with_its_sentence_or_with_all_it_said() -> None:
    trace = "Traceback (most recent call last):\n  File\n"
    assert str(FailedProcessError(f"{trace}ValueError: raise it\n")) == "raise it"
    assert str(FailedProcessError(f"{trace}KeyError: 'x'\n")) == f"{trace}KeyError: 'x'"
    assert str(FailedProcessError("")) == "it said nothing"


@given(gpus=st.sampled_from(COUNTS), gigabits=st.sampled_from([100.0, 200.0, 400.0]))
def test_more_gpus_do_more_less_well(gpus: int, gigabits: float) -> None:
    one, twice = (predict(HOST, count, gigabits, 8) for count in (gpus, 2 * gpus))
    assert one.images_per_second < twice.images_per_second
    assert twice.efficiency <= one.efficiency <= 1
    assert predict(HOST, gpus, 2 * gigabits, 8).efficiency >= one.efficiency


def test_graphs_hide_bytes_and_no_hops() -> None:
    nothing_to_send = replace(HOST, gradient_bytes=0.0)
    before, after = (
        predict(replace(nothing_to_send, backward_graphs=number), 64, 200.0, 8) for number in (1, 4)
    )
    assert before.exchange == after.exchange > HOST.exchange_seconds


@given(gpus=st.sampled_from(COUNTS), gigabits=st.sampled_from([100.0, 200.0, 400.0]))
def test_remedies_help_and_together_the_most(gpus: int, gigabits: float) -> None:
    found = {
        name: predict(one, gpus, gigabits, 8).efficiency for name, one in remedies(HOST, (16, 189.0)).items()
    }
    before, all_of_them = found.pop("as it is"), found.pop("all of them")
    assert len(found) == 3
    assert before < min(found.values()) and max(found.values()) < all_of_them < 1


def test_only_so_much_is_hidden_as_there_is_backward_pass() -> None:
    one = next(iter(remedies(HOST).values()))
    assert one is HOST
    four = remedies(HOST)["a backward pass in four graphs"]
    slow = between_hosts(64, HOST.gradient_bytes, 1)
    assert predict(four, 512, 1, 8).exchange == pytest.approx(
        slow + HOST.exchange_seconds - 0.75 * HOST.step_seconds / 2
    )


def test_a_link_carries_nearly_twice_the_gradients() -> None:
    assert between_hosts(1, 180e6, 200) == 0
    assert between_hosts(512, 180e6, 200) == pytest.approx(2 * 180e6 / 20e9, rel=0.1)


def test_the_slowest_of_many_is_later() -> None:
    assert lateness(1) == 0
    assert lateness(8) == pytest.approx(1.42, abs=0.02)  # the mean of the greatest of eight normal numbers
    assert lateness(512) > lateness(64)


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    plot(
        {"200 Gb/s": [predict(HOST, count, 200, 8) for count in COUNTS]}, [(1, 100.0)], tmp_path / "plot.png"
    )
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")

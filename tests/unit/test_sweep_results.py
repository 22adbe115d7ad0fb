"""What is shown of a sweep that was begun: counts, table, CSV, plots."""

from __future__ import annotations

import csv
import random
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from dfvt.cli import main
from dfvt.cluster.records import SWEEPS, TrialRecord, note_spec, one_at_a_time
from dfvt.cluster.spec import SweepSpec
from dfvt.data.storage import Mirror, StorageFolder
from dfvt.reports.sweep import best_first, results_table
from dfvt.reports.sweep_results import write_results

SPEC = SweepSpec.model_validate(
    {
        "name": "search",
        "num_samples": 8,
        "space": {
            "lr": {"loguniform": [1e-5, 1e-2]},
            "model.backbone.drop_path_rate": {"choice": [0.0, 0.1]},
            "optimizer.type": {"choice": ["AdamW", "SGD"]},
        },
    }
)


def trial(number: int, status: str = "finished", **assignment: object) -> TrialRecord:
    rng = random.Random(number)
    values = {
        "variant": "tiny",
        "lr": 10 ** rng.uniform(-5, -2),
        "model.backbone.drop_path_rate": rng.choice([0.0, 0.1]),
        "optimizer.type": rng.choice(["AdamW", "SGD"]),
        **assignment,
    }
    metrics = {"bbox_mAP": rng.random(), "segm_mAP": rng.random()}
    return TrialRecord(f"{number:04}", values, f"run{number}", status, 2, 2, 10.0, metrics)  # type: ignore[arg-type]


@pytest.fixture
def trials() -> list[TrialRecord]:
    return [trial(1), trial(2), trial(3, "stopped"), trial(4), trial(5, "failed"), trial(6, "running")]


@pytest.fixture
def project(tmp_path: Path, trials: list[TrialRecord], monkeypatch: pytest.MonkeyPatch) -> Path:
    note_spec(SPEC, Mirror(tmp_path / SWEEPS / "search"))
    for record in trials:
        record.save(tmp_path / SWEEPS / "search/trials" / record.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_sweep_in_a_storage_is_shown_by_its_address(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = StorageFolder((tmp_path / SWEEPS / "search").as_uri())
    assert main(["sweep", "status", f"{remote}"]) == 0
    by_address = capsys.readouterr()
    assert main(["sweep", "status", "search"]) == 0
    assert by_address == capsys.readouterr()
    assert main(["sweep", "results", f"{remote}"]) == 0
    assert (project / SWEEPS / "search/results/results.csv").is_file()
    (tmp_path / SWEEPS / "search/trials/0006/trial.json").unlink()
    capsys.readouterr()
    assert main(["sweep", "status", f"{remote}"]) == 0
    assert "3 waiting" in capsys.readouterr().err, "what is gone there is not remembered here"
    assert main(["sweep", "status", f"{remote}s"]) == 2
    assert "an address ends with the sweep's name" in capsys.readouterr().err


def test_status_counts_the_trials_and_lists_them(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_at_a_time(Mirror(project / SWEEPS / "search")):
        assert main(["sweep", "status", "search"]) == 0
    output = capsys.readouterr()
    assert output.err == "search: 8 trials: 3 finished, 1 stopped, 1 failed, 1 running, 2 waiting\n"
    assert len(output.out.splitlines()) == 2 + 6
    assert main(["sweep", "status", "search"]) == 0  # nobody runs it any more
    output = capsys.readouterr()
    assert output.err == "search: 8 trials: 3 finished, 1 stopped, 1 failed, 1 interrupted, 2 waiting\n"
    assert "| interrupted |" in output.out


def test_results_are_a_table_a_csv_and_plots(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "results", "search", "--out", "out"]) == 0
    assert {file.name for file in (project / "out").iterdir()} == {
        "results.csv",
        "parallel_coordinates.png",
        "importances.png",
    }
    rows = list(csv.DictReader((project / "out/results.csv").open()))
    assert [row["status"] for row in rows[:3]] == ["finished"] * 3
    best = max((1, 2, 4), key=lambda number: trial(number).metrics["bbox_mAP"])
    assert rows[0]["trial"] == f"{best:04}"
    assert float(rows[0]["lr"]) == trial(best).assignment["lr"]
    assert rows[0]["mlflow_run_id"] == f"run{best}"


@pytest.mark.parametrize(
    "few",
    [
        [],
        [trial(1)],
        [trial(number, lr=1.0) for number in (1, 2, 3)],
        [trial(1, "failed"), trial(2, "running")],
        [replace(trial(number), metrics={"bbox_mAP": 0.5}) for number in range(4)],
    ],
    ids=["none", "one", "one-key-constant", "none-finished", "all-equal"],
)
def test_few_trials_are_no_error(few: list[TrialRecord], tmp_path: Path) -> None:
    assert write_results(few, "bbox_mAP", "max", tmp_path)[0].name == "results.csv"
    assert results_table(few, "bbox_mAP", "max").startswith("| trial |")


def test_one_key_is_not_drawn_as_parallel_coordinates(tmp_path: Path) -> None:
    constant = {"model.backbone.drop_path_rate": 0.1, "optimizer.type": "SGD"}
    few = [trial(number, **constant) for number in range(4)]
    assert [file.name for file in write_results(few, "bbox_mAP", "max", tmp_path)] == ["results.csv"]


def test_plots_print_nothing_of_optunas(
    trials: list[TrialRecord], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.enable_propagation()
    try:
        assert len(write_results(trials, "bbox_mAP", "max", tmp_path)) == 3
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records


def test_why_a_trial_failed_stands_below_the_table(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = replace(trial(5, "failed"), failure="a loss was not finite")
    failed.save(project / SWEEPS / "search/trials/0005")
    assert main(["sweep", "status", "search"]) == 0
    assert capsys.readouterr().err.splitlines()[1:] == ["trial 0005 failed: a loss was not finite"]


def test_trials_that_differ_in_their_seed_alone_have_a_mean(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lucky = [(0.002, 0, 0.010), (0.002, 1, 0.040), (0.004, 0, 0.000), (0.004, 1, 0.048), (0.008, 0, 0.020)]
    records = [
        TrialRecord(
            f"{number:04}", {"variant": "tiny", "lr": lr, "seed": seed}, "run", "finished", 2, 2, 1.0,
            {"bbox_mAP": value},
        )
        for number, (lr, seed, value) in enumerate(lucky, 1)
    ]  # fmt: skip
    undefined = replace(records[0], name="0006", metrics={"bbox_mAP": -1.0})
    failed = replace(records[0], name="0007", status="failed", metrics={"bbox_mAP": 0.9})
    for record in [*records, undefined, failed]:
        record.save(project / SWEEPS / "search/trials" / record.name)
    assert main(["sweep", "status", "search"]) == 0
    trials, means = capsys.readouterr().out.split("\n\n")
    assert len(trials.splitlines()) == 2 + 7
    assert means.splitlines() == [
        "| variant | lr | seeds | bbox_mAP, mean ± std |",
        "| --- | --- | ---: | ---: |",
        "| tiny | 0.002 | 2 | 0.025 ± 0.021 |",
        "| tiny | 0.004 | 2 | 0.024 ± 0.034 |",
        "| tiny | 0.008 | 1 | 0.020 |",
    ]


def test_a_key_that_counts_for_some_trials_only_is_no_error(tmp_path: Path) -> None:
    some = [trial(number, **({"momentum": number / 10} if number % 2 else {})) for number in range(1, 9)]
    assert len(write_results(some, "bbox_mAP", "max", tmp_path)) == 3


def test_an_undefined_number_is_a_dash_an_empty_cell_and_the_last(tmp_path: Path) -> None:
    best = replace(trial(1), metrics={"bbox_mAP": 0.01784, "bbox_mAP_l": -1.0})
    undefined = replace(trial(2), metrics={"bbox_mAP": -1.0})
    for mode in ("max", "min"):
        assert best_first([undefined, best], "bbox_mAP", mode) == [best, undefined]  # type: ignore[arg-type]
    last = [
        line.split(" | ")[-1] for line in results_table([undefined, best], "bbox_mAP", "max").splitlines()
    ]
    assert last == ["bbox_mAP |", "---: |", "0.018 |", "\N{EN DASH} |"]
    write_results([undefined, best], "bbox_mAP", "max", tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["bbox_mAP"], row["bbox_mAP_l"]) for row in rows] == [("0.01784", ""), ("", "")]


def test_a_plot_that_cannot_be_drawn_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("zero total variance in all trees")

    monkeypatch.setattr("dfvt.reports.sweep_results.plots.plot_param_importances", refuse)
    files = write_results([trial(number) for number in range(1, 9)], "bbox_mAP", "max", tmp_path)
    assert [file.name for file in files] == ["results.csv", "parallel_coordinates.png"]
    assert "importances.png was not drawn: zero total variance in all trees" in capsys.readouterr().err


def test_what_should_be_small_comes_first_when_it_is(trials: list[TrialRecord]) -> None:
    upwards = [record.metrics["bbox_mAP"] for record in best_first(trials, "bbox_mAP", "min")[:3]]
    assert upwards == sorted(upwards)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "serach"], "no sweep serach was begun in "),
        (["results"], "write a spec's file, or status or results and a sweep's name"),
        (["status", "a", "b"], "write a spec's file, or status or results and a sweep's name"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    project: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert words != ["status", "serach"] or "there are search" in line

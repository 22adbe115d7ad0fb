"""Runs are found, put beside each other and beside the published results."""

from __future__ import annotations

import csv
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from dfvt.cli import main
from dfvt.reports.compare import (
    by_data_set,
    config_differences,
    markdown,
    missed,
    require_tolerance,
    rows_of,
    table_of,
)
from dfvt.reports.compare_page import draw_pareto, pareto_front, save_comparison, write_csv
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.runs import RunInfo, choose_runs, list_runs, matches


def run(
    run_id: str = "0123456789abcdef",
    name: str = "tiny coco2017",
    *,
    bbox: float | None = 0.348,
    segm: float | None = 0.326,
    profile: str = "coco2017",
    variant: str = "tiny",
    seed: int = 0,
    tags: dict[str, str] | None = None,
    metrics: dict[str, float] | None = None,
    **params: Any,
) -> RunInfo:
    found = {"bbox_mAP": bbox, "segm_mAP": segm, **(metrics or {})}
    return RunInfo(
        run_id,
        name,
        "FINISHED",
        7200.0,
        {"seed": str(seed), "num_workers": "4", **{key: str(value) for key, value in params.items()}},
        {key: value for key, value in found.items() if value is not None},
        {"dfvt.variant": variant, "dfvt.profile": profile, "data.hash": "d" * 64, **(tags or {})},
    )


def cells_of(rows: Any) -> list[dict[str, str]]:
    header, cells = table_of(rows)
    return [dict(zip(header, row, strict=True)) for row in cells]


def test_seeds_of_one_setting_are_one_row_with_mean_and_deviation() -> None:
    runs = [run(str(seed), bbox=value, seed=seed, lr=1e-4) for seed, value in enumerate([0.34, 0.35, 0.36])]
    runs.append(run("other", bbox=0.345, lr=2e-4))
    rows = rows_of(runs)
    assert [len(row.runs) for row in rows] == [3, 1]
    first, second = cells_of(rows)
    assert first["run"] == "tiny coco2017 … (3 runs)"
    assert first["box mAP"] == "0.350 ± 0.010"
    assert (first["lr"], second["lr"]) == ("0.0001", "0.0002")
    assert "seed" in second and first["seed"] == ""
    drawn = cells_of(rows_of([run("a", lr=0.000123456789, freeze="x.y"), run("b", lr=20, freeze="e")]))
    assert [(row["lr"], row["freeze"]) for row in drawn] == [("0.0001235", "x.y"), ("20", "e")]
    assert second["box mAP"] == "0.345"
    assert first["worker-hours"] == "8.00"
    assert [len(row.runs) for row in rows_of(runs, each=True)] == [1, 1, 1, 1]


def test_runs_of_different_configs_are_not_one_row() -> None:
    runs = [run("a", bbox=0.3, tags={"config.hash": "1"}), run("b", bbox=0.4, tags={"config.hash": "2"})]
    assert [len(row.runs) for row in rows_of(runs)] == [1, 1]


def test_numbers_stand_beside_the_published_ones_where_they_may() -> None:
    rows = rows_of([run(bbox=0.351), run("b", variant="base", bbox=0.4, profile="mini")])
    by_variant = {row.variant: row for row in rows}
    assert by_variant["tiny"].above_published("bbox_mAP") == pytest.approx(0.003)
    assert by_variant["base"].above_published("bbox_mAP") is None
    tiny = cells_of(rows)[1]
    assert (tiny["detector"], tiny["box mAP − published"], tiny["mask mAP − published"]) == (
        "DFvT-T",
        "+0.003",
        "+0.000",
    )


def test_what_was_stopped_early_comes_last_and_is_no_seed_of_the_others() -> None:
    stopped = run("s", bbox=0.9, seed=1, tags={"dfvt.stopped_after_epoch": "3"})
    rows = rows_of([stopped, run("f", bbox=0.1)])
    assert [row.first.run_id for row in rows] == ["f", "s"]
    assert cells_of(rows)[1]["status"] == "stopped at epoch 3"


def test_a_last_validation_counts_where_there_was_no_evaluation() -> None:
    trial = run(bbox=None, segm=None, metrics={"val/bbox_mAP": 0.2, "val/segm_mAP": -1.0})
    (cells,) = cells_of(rows_of([trial]))
    assert cells["box mAP"] == "0.200"
    assert "mask mAP" not in cells, "COCO's −1 is no number"


def test_the_gate() -> None:
    good, bad = run("g", bbox=0.344), run("b", bbox=0.335, lr=1)
    assert missed(rows_of([good]), 0.005) == []
    assert missed(rows_of([good, bad]), 0.005) == ["tiny coco2017: box mAP is 0.013 below the published one"]
    with pytest.raises(ValueError, match="none of the runs can be held against"):
        missed(rows_of([run(profile="mini")]), 0.005)


@pytest.mark.parametrize("gate", [0.1, 0.5, 5, -0.01, float("nan"), float("inf")])
def test_a_gate_in_another_unit_is_refused(gate: float) -> None:
    with pytest.raises(ValueError, match="it is a difference of mAP, which is a fraction of 0 to 1"):
        missed(rows_of([run(bbox=0.3)]), gate)
    if gate == 0.5:
        with pytest.raises(ValueError, match=r"for 0\.5 percent points write 0\.005"):
            require_tolerance(gate)


def test_numbers_of_different_data_sets_are_in_tables_of_their_own() -> None:
    other = {"data.hash": "e" * 64}
    runs = [
        run("a", "first", bbox=0.2, lr=1),
        run("b", "second", bbox=0.9, profile="custom", tags=other, lr=1, batch_size=4),
        run("c", "third", bbox=0.3, lr=2),
        run("d", "fourth", bbox=0.1, profile="custom", tags=other, lr=1, batch_size=4),
        run("e", "fifth", profile="", tags={"data.hash": ""}, lr=1),
    ]
    groups = by_data_set(runs)
    assert list(groups) == ["coco2017 dddddddd", "custom eeeeeeee", "not noted"]
    rows = {data_set: rows_of(of_data, each=True) for data_set, of_data in groups.items()}
    first, second, third = (table.splitlines() for table in markdown(rows).split("Data set ")[1:])
    assert [line.split(" | ")[0] for line in first[4:6]] == ["| third", "| first"]
    assert [line.split(" | ")[0] for line in second[4:6]] == ["| second", "| fourth"]
    assert "| fifth |" in third[4]
    assert "batch_size" not in "".join([*first, *second]), "it differs between the data sets alone"
    figure = draw_pareto({name: rows_of([run(metrics={"flops": 1e9})]) for name in ("one", "two")})
    assert figure is not None
    assert [ax.get_title() for ax in figure.axes] == ["data set one", "data set two"]


def test_values_that_say_nothing_are_no_column() -> None:
    trained, trial = run("a", use_gpu="auto", cfg_options="{}", lr=1), run("b", lr=1, bbox=0.1)
    assert [row.differing for row in rows_of([trained, trial], each=True)] == [{}, {}]
    assert [len(row.runs) for row in rows_of([trained, trial])] == [2]
    chosen = run("c", use_gpu="False", cfg_options="{'a': 1}", lr=1)
    assert list(rows_of([trained, chosen])[0].differing) == ["use_gpu", "cfg_options"]


def test_an_undefined_number_is_an_empty_cell_of_the_csv(tmp_path: Path) -> None:
    numbers = {"bbox_mAP_l": -1.0, "segm_AP/cat": -1.0, "train/loss": -1.0}
    write_csv([run(metrics=numbers)], tmp_path / "compare.csv")
    (line,) = csv.DictReader((tmp_path / "compare.csv").open())
    assert (line["bbox_mAP_l"], line["segm_AP/cat"], line["train/loss"]) == ("", "", "-1.0")


@given(points=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=30))
def test_no_point_beats_one_of_the_front_in_both(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert bool(front) == bool(points)
    for cost, value in front:
        assert not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
    for cost, value in points:
        assert any(c <= cost and v >= value for c, v in front)


def test_config_keys_that_differ() -> None:
    one = {"model": {"a": 1, "b": [{"type": "x", "p": 0.1}]}, "same": {"c": (1, 2)}}
    two = {"model": {"a": 2, "b": [{"type": "x", "p": 0.2}]}, "same": {"c": (1, 2)}, "new": True}
    assert config_differences({"one": one, "two": two}) == {
        "model.a": {"one": "1", "two": "2"},
        "model.b.0.p": {"one": "0.1", "two": "0.2"},
        "new": {"one": "–", "two": "True"},
    }


def test_files(tmp_path: Path) -> None:
    sizes = [{"num_params": 4e6, "flops": 3e9}, {"num_params": 8e6, "flops": 6e9}]
    runs = [run(str(number), f"run |{number}", lr=number, metrics=sizes[number]) for number in (0, 1)]
    save_comparison(
        {"coco2017 d": rows_of(runs)}, {"model.a": {"run |0": "<b>", "run |1": "a | b"}}, tmp_path / "out"
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"compare.md", "compare.csv", "compare.html", "pareto.png"}
    lines = list(csv.DictReader((tmp_path / "out/compare.csv").open()))
    assert [line["name"] for line in lines] == ["run |0", "run |1"]
    assert lines[0]["bbox_mAP"] == "0.348" and lines[0]["dfvt.variant"] == "tiny"
    page = (tmp_path / "out/compare.html").read_text()
    assert "&lt;b&gt;" in page and "<svg" in page
    assert r"run \|0" in (tmp_path / "out/compare.md").read_text()
    assert r"| a \| b |" in (tmp_path / "out/compare.md").read_text(), "the keys that differ, too"
    assert "<h2>Data set coco2017 d</h2>" in page
    assert "3.00G" in markdown({"": rows_of(runs)})


def test_a_picture_that_cannot_be_drawn_leaves_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(rows: Any) -> None:
        raise RuntimeError("no canvas")

    monkeypatch.setattr("dfvt.reports.compare_page.draw_pareto", refuse)
    files = save_comparison({"mini": rows_of([run(metrics={"flops": 3e9})])}, {}, tmp_path)
    assert [file.name for file in files] == ["compare.html", "compare.md", "compare.csv"]
    assert all(file.is_file() for file in files)
    assert f"dfvt: the picture {tmp_path}/pareto.png was not drawn: no canvas" in capsys.readouterr().err


def test_keys_lead_to_runs() -> None:
    one = run("a1b2c3d4", "tiny mini", tags={"git.commit": "beef" * 10, "dfvt.sweep": "my-search"})
    two = run("ffff0000", "base mini", tags={"git.commit": "cafe" * 10, "mlflow.user": "a1b2"})
    for key in ("a1b2c3d4", "a1b2", "tiny mini", "beefbeef", "my-search"):
        assert matches(one, key) and not matches(two, key), key
    assert not matches(one, "a1"), "too short to be a beginning"
    assert choose_runs([one, two], ["cafe", "my-search", "cafecafe"]) == [two, one]
    with pytest.raises(ValueError, match="no run has 'dead'"):
        choose_runs([one, two], ["dead"])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return f"sqlite:///{tmp_path}/mlflow.db"


def record(store: str, name: str, metrics: dict[str, float], **params: Any) -> RunRecorder:
    recorder = RunRecorder.open(
        store,
        "dfvt",
        artifact_root=Path("mlartifacts"),
        run_name=name,
        tags={"dfvt.variant": "tiny", "dfvt.profile": "coco2017", "dfvt.sweep": name},
        params=params,
    )
    recorder.log_metrics(metrics)
    return recorder


def test_the_commands(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for lr, bbox in ((1e-4, 0.30), (2e-4, 0.35)):
        recorder = record(store, "first", {"bbox_mAP": bbox}, lr=lr, seed=0)
        Path("config.py").write_text(f"optimizer = dict(lr={lr})\n")
        recorder.log_artifact(Path("config.py"))
        recorder.finish()
    record(store, "second", {"bbox_mAP": 0.2}, lr=1).finish("FAILED")
    assert main(["compare", "--sweep", "first", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert out.index("| 0.0002 |") < out.index("| 0.0001 |")
    assert "optimizer.lr" in Path("out/compare.md").read_text()
    assert main(["compare", "first", "--gate"]) == 1
    assert "box mAP is 0.048 below the published one" in capsys.readouterr().err
    assert main(["compare", "first", "--gate", "0.05"]) == 0
    assert main(["compare", "first", "--gate", "0.5"]) == 2, "percent points, as earlier versions took them"
    assert "for 0.5 percent points write 0.005" in capsys.readouterr().err
    assert main(["compare"]) == 0
    assert "left out without --all: 1 failed" in capsys.readouterr().err
    record(store, "begun", {}, lr=3)
    assert main(["compare", "--all", "--sweep", "begun"]) == 0
    assert "| begun | DFvT-T | running |" in capsys.readouterr().out
    assert main(["compare", "--all", "--each"]) == 0
    assert capsys.readouterr().out.count("tiny") == 0  # names are "first" and "second"
    assert main(["runs", "find", recorder.run_id[:8]]) == 0
    assert recorder.run_id in capsys.readouterr().out
    record(store, "name [/b]", {}).finish()
    assert main(["runs", "find", "name [/b]"]) == 0
    assert "name [/b]" in capsys.readouterr().out


def test_configs_of_runs_are_read_and_never_executed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [
        'lr = 0.1\nmodel = dict(type="A", scale=(1, 2))\n',
        'open("executed", "w").close()\nlr = 0.2\n',
        'lr = __import__("pathlib").Path("executed").touch()\n',
        'lr = 0.4\nmodel = dict(type="A", scale=(1, 2))\n',
    ]
    for number, text in enumerate(texts):
        recorder = record(store, f"run {number}", {"bbox_mAP": 0.3}, seed=number)
        recorder.log_text(text, "config.py")
        if number == 3:  # JSON has no tuples
            recorder.log_text('{"lr": 0.3, "model": {"type": "A", "scale": [1, 2]}}', "config.json")
        recorder.finish()
    assert main(["compare", "--out", "out"]) == 0
    assert not Path("executed").exists()
    table = Path("out/compare.md").read_text()
    assert "| lr " in table and "scale" not in table
    assert "0.3 |" in table and "0.4 |" not in table, "of two files the JSON counts"
    said = capsys.readouterr().err
    assert (
        said.count("is left out of the configs: config config.py, line 1, holds more than plain values") == 2
    )


def test_what_an_outage_left_is_sent(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = record(store, "first", {})
    recorder.log_curve([(step, {"train/loss": float(step)}) for step in (1, 2)])
    for folder in ("runs/tiny", ".dfvt/sweeps/s/trials/0001"):
        Path(folder).mkdir(parents=True)
        Path(folder, "curve.csv").write_text(
            "step,epoch,loss,lr\n" + "".join(f"{n},1,{n}.5,0.1\n" for n in range(1, 6))
        )
        Path(folder, "val.csv").write_text("step,epoch,bbox_mAP,segm_mAP\n5,1,0.25,0.125\n")
    recorder.finish()
    noted = {"mlflow_run_id": recorder.run_id, "tracking_uri": store}
    Path("runs/tiny/run.json").write_text(json.dumps(noted))
    Path(".dfvt/sweeps/s/trials/0001/trial.json").write_text(json.dumps(noted))
    assert main(["runs", "sync"]) == 0
    assert capsys.readouterr().out == ".dfvt/sweeps/s/trials/0001: 4 points sent\n"
    history = MlflowClient(store).get_metric_history(recorder.run_id, "train/loss")
    assert sorted((one.step, one.value) for one in history) == [(1, 1), (2, 2), (3, 3.5), (4, 4.5), (5, 5.5)]
    assert main(["runs", "sync", "runs/tiny"]) == 0
    assert "no point is missing: looked at the curve files of 1 trainings" in capsys.readouterr().out
    assert main(["runs", "sync", "nowhere"]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare", "--experiment", "other"], "MLflow has no experiment 'other'; it has: "),
        (["compare", "nothing"], "no run has 'nothing'"),
        (["compare", "--sweep", "none"], "no run is of a sweep 'none'; there are: first"),
        (["compare", "--metric", "nonsense"], "none of the runs has a number 'nonsense'"),
    ],
)
def test_mistakes_are_one_sentence(
    store: str, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    record(store, "first", {"bbox_mAP": 0.3}).finish()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


def test_without_a_store_nothing_is_made(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert "there are no runs yet" in capsys.readouterr().err
    assert not Path("mlflow.db").exists()


def test_a_thousand_runs_are_compared_in_seconds(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, "first", {"bbox_mAP": 0.3}).finish()
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    many_runs(Path("mlflow.db"), experiment.experiment_id, 1000)
    assert len(list_runs(store, "dfvt")) == 1001
    started = time.perf_counter()
    assert main(["compare", "--out", "out"]) == 0
    assert time.perf_counter() - started < 10
    assert "± " in capsys.readouterr().out


def many_runs(database: Path, experiment_id: str, number: int) -> None:
    """Copies of the only run, written as MLflow's tables have them: it takes minutes to log so many."""
    with sqlite3.connect(database) as connection:
        tables = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in ("runs", "tags", "params", "latest_metrics", "metrics")
        }
        (source,) = next(iter(connection.execute("SELECT run_uuid FROM runs")))
        for index in range(number):
            run_id = f"{index:032x}"
            for table, columns in tables.items():
                chosen = ", ".join("?" if column == "run_uuid" else column for column in columns)
                into = f"INSERT INTO {table} ({', '.join(columns)})"
                statement = f"{into} SELECT {chosen} FROM {table} WHERE run_uuid = ?"
                connection.execute(statement, (run_id, source))
            for key, value in (("seed", index % 5), ("lr", 1e-4 * (index // 5)), ("num_workers", 1)):
                connection.execute(
                    "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", (key, str(value), run_id)
                )
            for table in ("latest_metrics", "metrics"):
                connection.execute(
                    f"UPDATE {table} SET value = ? WHERE run_uuid = ?", (0.2 + index / 10_000, run_id)
                )

"""The whole experiment, from nothing to the report, as its user meets it."""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path

import mlflow.pyfunc
import pytest
from mlflow import MlflowClient

from dfvt.engine.plain import load_plain_config
from dfvt.reports.results import AP_KEYS
from tests.conftest import Project

pytestmark = pytest.mark.e2e
VARIANTS = ("tiny", "small", "base")


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


def test_every_stage_leaves_what_it_promises(reproduced: Project) -> None:
    files = {str(file.relative_to(reproduced.path)) for file in reproduced.path.rglob("*") if file.is_file()}
    expected = {
        "data/dataset/manifest.json",
        "data/validation.html",
        "data/validation.json",
        "metrics/profile.json",
        "reports/results.md",
    }
    for variant in VARIANTS:
        names = ("checkpoint.pth", "config.py", "curve.csv", "run.json", "val.csv")
        expected |= {f"runs/{variant}/{name}" for name in names} | {f"metrics/evaluate_{variant}.json"}
    assert expected <= files
    assert not [file for file in files if ".partial" in file]
    report = (reproduced.path / "reports/results.md").read_text()
    assert "Not comparable with the published results" in report
    for figure in re.findall(r"\]\((figures/\S+)\)", report):
        assert f"reports/{figure}" in files


def test_mlflow_shows_one_comparable_run_a_variant(reproduced: Project) -> None:
    client = MlflowClient(f"sqlite:///{reproduced.path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dfvt")
    assert experiment is not None
    runs = {run.data.tags["dfvt.variant"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == sorted(VARIANTS)
    for variant, run in runs.items():
        assert run.info.status == "FINISHED"
        metrics = json.loads((reproduced.path / f"metrics/evaluate_{variant}.json").read_text())
        for name in [name for names in AP_KEYS.values() for name in names]:
            undefined = metrics[name] is None
            assert (name not in run.data.metrics) if undefined else run.data.metrics[name] >= 0
            assert undefined or run.data.metrics[name] == pytest.approx(metrics[name], abs=1e-6)
        assert run.data.metrics["num_params"] > 1e6
        assert run.data.metrics["best_bbox_mAP"] >= run.data.metrics["val/bbox_mAP"]
        assert run.data.metrics["ms_per_image"] > 0
        assert {"bbox_AP/disk", "segm_AP/star"} <= run.data.metrics.keys()
        assert run.data.metrics["flops"] > 1e8
        assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 12
        trained_with = [float(run.data.params[key]) for key in ("lr", "num_epochs", "batch_size")]
        assert all(value > 0 for value in trained_with), "what the config says stands there too"
        tags = {"git.commit", "dvc.lock", "data.hash", "config.hash", "ray.job_id", "ray.trial_id"}
        assert tags <= run.data.tags.keys()
        artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"config.py", "checkpoint.pth", "evaluation", "model"} <= artifacts
        evaluation = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "evaluation")}
        assert {"evaluation/errors.csv", "evaluation/gallery"} <= evaluation
        assert "evaluation/predictions.segm.json" not in evaluation, "DVC keeps it"


def test_the_best_detector_is_the_champion_and_finds_what_its_evaluation_found(
    reproduced: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{reproduced.path / 'mlflow.db'}")
    manifest = json.loads((reproduced.path / "data/dataset/manifest.json").read_text())
    (registered,) = MlflowClient().search_registered_models()
    assert registered.name == f"dfvt-mini-{manifest['data_hash'][:8]}"
    client = MlflowClient()
    versions = client.search_model_versions(f"name='{registered.name}'")
    assert sorted(version.tags["dfvt.variant"] for version in versions) == sorted(VARIANTS)
    champion = client.get_model_version_by_alias(registered.name, "champion")
    assert float(champion.tags["bbox_mAP"]) == max(float(version.tags["bbox_mAP"]) for version in versions)
    monkeypatch.chdir(reproduced.path)
    detector = mlflow.pyfunc.load_model(
        f"models:/{registered.name}@champion", model_config={"read_paths": True}
    )
    val = json.loads(Path("data/dataset/shapes/annotations/instances_val2017.json").read_text())
    answers = detector.predict(
        [f"data/dataset/shapes/val2017/{image['file_name']}" for image in val["images"]]
    )
    found = [
        (image["id"], label, score)
        for image, answer in zip(val["images"], answers, strict=True)
        for label, score in zip(answer["labels"], answer["scores"], strict=True)
    ]
    names = {category["id"]: category["name"] for category in val["categories"]}
    predictions = Path("evaluations", champion.tags["dfvt.variant"], "predictions.bbox.json")
    expected = [
        (item["image_id"], names[item["category_id"]], item["score"])
        for item in json.loads(predictions.read_text())
    ]
    assert len(found) == len(expected) > 0
    for (*ours, score), (*theirs, other) in zip(sorted(found), sorted(expected), strict=True):
        assert ours == theirs and score == pytest.approx(other, abs=1e-6)


def test_evaluation_equals_the_trainings_last_validation(reproduced: Project) -> None:
    for variant in VARIANTS:
        metrics = json.loads((reproduced.path / f"metrics/evaluate_{variant}.json").read_text())
        lines = (reproduced.path / f"runs/{variant}/val.csv").read_text().split()
        header, last = lines[0].split(","), lines[-1].split(",")
        validated = dict(zip(header, last, strict=True))
        for name in ("bbox_mAP", "segm_mAP"):
            assert float(validated[name]) == pytest.approx(metrics[name], abs=1e-5)


@pytest.mark.parametrize("command", [["dvc", "repro"], ["python", "-m", "pipelines.repro"]])
def test_with_nothing_changed_nothing_runs(reproduced: Project, command: list[str]) -> None:
    result = reproduced.run(*command)
    assert result.returncode == 0, result.stderr
    assert stages_run(result.stdout + result.stderr) == []


def test_finding_that_nothing_changed_takes_seconds(reproduced: Project) -> None:
    """Of the processor, which is as long on a quiet machine and on a busy one."""
    before = seconds_of_processes()
    assert reproduced.run("dvc", "repro").returncode == 0
    assert seconds_of_processes() - before < 5


def seconds_of_processes() -> float:
    """Return the processor time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_variants_parameter_reruns_that_variant_alone_and_the_same_seed_gives_the_same_numbers(
    reproduced: Project,
) -> None:
    files = [reproduced.path / "metrics/evaluate_tiny.json", reproduced.path / "runs/tiny/val.csv"]
    before = [file.read_text() for file in files]
    run_id = run_of_tiny(reproduced)
    config = load_plain_config(reproduced.path / "runs/tiny/config.py")
    reproduced.set_params(train__variants__tiny={"lr": config["optimizer"]["lr"]})  # what it was without
    result = reproduced.repro()
    assert result.returncode == 0, result.stderr
    assert stages_run(result.stdout + result.stderr) == ["train@tiny", "evaluate@tiny", "report"]
    assert [file.read_text() for file in files] == before
    assert run_of_tiny(reproduced) != run_id


def run_of_tiny(project: Project) -> str:
    return str(json.loads((project.path / "runs/tiny/run.json").read_text())["mlflow_run_id"])


def test_dvc_compares_and_experiments(reproduced: Project) -> None:
    for command in (
        ["dvc", "metrics", "show"],
        ["dvc", "metrics", "diff", "HEAD"],
        ["dvc", "plots", "diff", "HEAD"],
        ["dvc", "exp", "run", "-S", "train.variants.tiny.lr=2e-4", "train@tiny"],
        ["dvc", "exp", "show", "--csv"],
    ):
        result = reproduced.run(*command)
        assert result.returncode == 0, f"{command}: {result.stdout}{result.stderr}"
    assert "train.variants.tiny.lr" in result.stdout


def test_no_absolute_path_of_the_project_is_in_what_it_commits(reproduced: Project) -> None:
    tracked = reproduced.run("git", "ls-files").stdout.split("\n")
    texts = [reproduced.path / name for name in filter(None, tracked)]
    assert [str(file) for file in texts if str(reproduced.path).encode() in Path(file).read_bytes()] == []


def test_results_are_pushed_to_a_remote_and_pulled_in_a_clone(reproduced: Project, tmp_path: Path) -> None:
    for back in (["git", "checkout", "--", "."], ["dvc", "checkout"]):  # other tests changed a parameter
        assert reproduced.run(*back).returncode == 0
    clone = Project(tmp_path / "a clone")
    assert reproduced.run("git", "clone", "-q", ".", str(clone.path)).returncode == 0
    (clone.path / ".venv").symlink_to(Path(sys.prefix))
    for project, command in ((reproduced, "push"), (clone, "pull")):
        added = project.run("dvc", "remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
        assert added.returncode == 0, added.stderr
        result = project.run("dvc", command)
        assert result.returncode == 0, result.stdout + result.stderr
    reproduced.run("dvc", "remote", "remove", "--local", "store")
    for name in ("runs/tiny/checkpoint.pth", "data/dataset/manifest.json", "reports/results.md"):
        assert (clone.path / name).read_bytes() == (reproduced.path / name).read_bytes()
    result = clone.run("dvc", "repro")
    assert result.returncode == 0, result.stderr
    assert stages_run(result.stdout + result.stderr) == []

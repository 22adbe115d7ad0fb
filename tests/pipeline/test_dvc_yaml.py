"""dvc.yaml names every file of ours that a stage runs, so that a change of code reruns the right stages."""

from __future__ import annotations

import re
from pathlib import Path

import grimp
import pytest
from PIL import Image
from ruamel.yaml import YAML

from tests.conftest import Project

ROOT = Path(__file__).parents[2]
DVC_YAML = YAML(typ="safe").load((ROOT / "dvc.yaml").read_bytes())
STAGES = DVC_YAML["stages"]
IMAGES = {name for plot in DVC_YAML["plots"] for name in plot if name.endswith(".png")}


def body(stage: str) -> dict:
    return STAGES[stage].get("do", STAGES[stage])


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("dfvt", "pipelines", cache_dir=None)


def imported_files(graph: grimp.ImportGraph, module: str) -> set[str]:
    """Source files that run when `module` does: what it imports, directly or not, and their packages."""
    modules, waiting = set[str](), [module]
    while waiting:
        name = waiting.pop()
        if name in modules:
            continue
        modules.add(name)
        parents = [name.rsplit(".", level)[0] for level in range(1, name.count(".") + 1)]
        # The root package imports dfvt.models only where mmdet is: where the engine imports it as well.
        children = graph.find_modules_directly_imported_by(name) if name != "dfvt" else set()
        waiting += [*parents, *children]
    files = set()
    for name in modules:
        path = Path(*name.split("."))
        files.add(str(path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")))
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_exactly_the_code_that_it_runs(graph: grimp.ImportGraph, stage: str) -> None:
    python, _, package, name, *_ = body(stage)["cmd"].split()
    assert (python, package) == ("python", "pipelines")
    named = {dep for dep in body(stage)["deps"] if dep.endswith(".py") and "$" not in dep}
    assert named == imported_files(graph, f"pipelines.{name}") | {"pipelines/__main__.py"}


def test_the_stages_are_those_of_the_contract() -> None:
    assert set(STAGES) == {
        "fetch_data", "fetch_weights", "validate_data", "profile", "train", "evaluate", "report",
    }  # fmt: skip
    assert STAGES["train"]["foreach"] == STAGES["evaluate"]["foreach"] == ["tiny", "small", "base"]


def test_each_data_file_that_a_stage_reads_is_an_output_of_another() -> None:
    outs = set()
    for stage in STAGES:
        items = STAGES[stage].get("foreach", [""])
        for kind in ("outs", "metrics"):
            for out in body(stage).get(kind, []):
                name = next(iter(out)) if isinstance(out, dict) else out
                outs |= {name.replace("${item}", item) for item in items}
    for stage in STAGES:
        for dep in body(stage)["deps"]:
            for item in STAGES[stage].get("foreach", [""]):
                path = dep.replace("${item}", item)
                if not path.endswith(".py") and path not in ("${data.root}", "configs"):
                    assert path in outs or any(path.startswith(f"{out}/") for out in outs), path


def test_every_figure_of_the_report_is_a_plot() -> None:
    figures = re.findall(r'"(\w+\.png)"', (ROOT / "pipelines/report.py").read_text())
    assert len(figures) > 3
    assert {f"reports/figures/{name}" for name in figures} == {
        plot for plot in IMAGES if plot.startswith("reports/")
    }


def test_an_experiment_of_one_stage_runs_where_no_other_result_is(project: Project) -> None:
    # dvc.lock names the results of all detectors, which are in no cache of a clone.
    result = project.run("dvc", "exp", "run", "-S", "data.shapes.seed=3", "fetch_data")
    assert result.returncode == 0, result.stderr
    assert (project.path / "data/dataset/manifest.json").is_file()


def test_plots_show_the_results_that_are_there(project: Project) -> None:
    for name in [name for name in IMAGES if "base" not in name]:
        (project.path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(project.path / name)
    (project.path / "runs/tiny").mkdir(parents=True)
    (project.path / "runs/tiny/curve.csv").write_text("step,loss\n1,2.5\n2,1.5\n")
    result = project.run("dvc", "plots", "show", "--out", "plots")
    assert result.returncode == 0, result.stderr
    page = (project.path / "plots/index.html").read_text()
    shown = set(re.findall(r'<img src="static/workspace_(.+?)">', page))
    assert shown == {name.replace("/", "_") for name in IMAGES if "base" not in name}
    assert "training loss" in page and '"loss": "2.5"' in page

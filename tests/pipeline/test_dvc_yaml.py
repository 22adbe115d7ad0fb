"""dvc.yaml names every file of ours that a stage runs, so that a change of code reruns the right stages."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_bytes())["stages"]


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
    module = body(stage)["cmd"].split()[2]
    named = {dep for dep in body(stage)["deps"] if dep.endswith(".py") and "$" not in dep}
    assert named == imported_files(graph, module)


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

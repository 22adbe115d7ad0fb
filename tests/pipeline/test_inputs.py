"""What is wrong with the input is said before a stage runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from dfvt.settings import Settings
from pipelines import inputs
from pipelines.inputs import WRITTEN, check_data_root, check_training_options, variants_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a data set."""
    folder = tmp_path / "project"
    (folder / "data/source/train2017").mkdir(parents=True)
    (folder / "data/source/train2017/1.jpg").touch()
    monkeypatch.chdir(folder)
    return folder


def test_every_output_of_dvc_yaml_is_one_that_data_must_not_be_in() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    for stage in (stage.get("do", stage) for stage in stages):
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path = out if isinstance(out, str) else next(iter(out))
            assert any(Path(path).is_relative_to(written) for written in WRITTEN), path


def test_a_folder_of_data_is_accepted_wherever_its_links_lead(project: Path) -> None:
    (project.parent / "images").mkdir()
    (project / "data/source/val2017").symlink_to(project.parent / "images")
    (project / "data/source/2.jpg").symlink_to(project / "data/source/train2017/1.jpg")
    (project / "data/own").symlink_to(project.parent / "images")
    for root in ("data/source", str(project / "data/source"), "../images", "data/own"):
        check_data_root(Path(root))


@pytest.mark.parametrize(
    ("root", "relation"),
    [
        ("data", "contains data/dataset"),
        (".", "contains data/dataset"),
        ("..", "contains data/dataset"),
        ("data/dataset", "is data/dataset"),
        ("data/dataset/shapes", "is in data/dataset"),
        ("runs/tiny", "is in runs"),
        ("linked", "is in weights"),
    ],
)
def test_data_where_the_experiment_writes_are_refused(project: Path, root: str, relation: str) -> None:
    for folder in ("data/dataset/shapes", "runs/tiny", "weights/own"):
        (project / folder).mkdir(parents=True)
    (project / "linked").symlink_to("weights/own")
    with pytest.raises(ValueError, match=rf"^data.root {root} {relation}, which the experiment writes: move"):
        check_data_root(Path(root))


def test_a_home_that_is_written_as_a_tilde_is_told(project: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data\.root ~/data is not a directory .*write the whole path"
    ):
        check_data_root(Path("~/data"))


def test_a_link_to_nothing_is_named_with_a_remedy(project: Path) -> None:
    (project / "data/source/train2017/2.jpg").symlink_to("/nonexistent/2.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"2\.jpg is a link to /nonexistent/2\.jpg, which .*: correct"
    ):
        check_data_root(Path("data/source"))


def test_links_in_a_circle_are_refused(project: Path) -> None:
    (project / "data/source/a").symlink_to("b")
    (project / "data/source/b").symlink_to("a")
    with pytest.raises(FileNotFoundError, match=r"data/source/\w is a link to \w, which does not exist"):
        check_data_root(Path("data/source"))


def test_what_dvc_would_wait_for_or_refuse_is_named(project: Path) -> None:
    pipe = project / "data/source/pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="data/source/pipe is neither a file nor a folder: remove it"):
        check_data_root(Path("data/source"))
    pipe.unlink()
    (project / "data/source/other").mkdir()
    (project / "data/source/other/.dvcignore").touch()
    with pytest.raises(ValueError, match=r"contains the DVC project data/source/other: set data\.root"):
        check_data_root(Path("data/source"))


def settings_with(**train: object) -> Settings:
    return Settings.model_validate({"profile": "mini", "train": train})


def lock_of(path: Path, settings: Settings, *variants: str) -> Path:
    """The dvc.lock after trainings of these variants."""
    stages: dict[str, object] = {"profile": {"params": {"params.yaml": {"profile": "mini", "configs": None}}}}
    for variant in variants:
        own = getattr(settings.train.variants, variant).model_dump()
        params = {"train.cfg_options": dict(settings.train.cfg_options), f"train.variants.{variant}": own}
        stages[f"train@{variant}"] = {"params": {"params.yaml": params}}
    path.write_text(json.dumps({"schema": "2.0", "stages": stages}))
    return path


def test_a_misspelt_option_is_an_error_before_dvc_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        ValueError, match=r"^train@tiny: config configs/mini/.*: the config has no key model\.bac"
    ):
        check_training_options(
            settings_with(cfg_options={"model.backbone.drop_pathrate": 0.1}), Path("dvc.lock")
        )
    small = {"variants": {"small": {"cfg_options": {"runner.type": "IterBasedRunner"}}}}
    with pytest.raises(ValueError, match=r"^train@small: runner.type 'IterBasedRunner' is not supported"):
        check_training_options(settings_with(**small), Path("dvc.lock"))
    check_training_options(
        settings_with(cfg_options={"model.backbone.drop_path_rate": 0.1}), Path("dvc.lock")
    )


def test_options_that_a_training_has_used_are_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(
        inputs, "check_training_config", lambda settings, variant, config: checked.append(variant)
    )
    settings = settings_with(cfg_options={"data": {"workers_per_gpu": 1}}, variants={"base": {"lr": 1e-3}})
    check_training_options(settings, lock_of(tmp_path / "dvc.lock", settings, "tiny", "base"))
    assert checked == ["small"]
    other = settings_with(cfg_options={"data": {"workers_per_gpu": 2}})
    check_training_options(other, tmp_path / "dvc.lock")
    assert checked == ["small", "tiny", "small", "base"]
    (tmp_path / "dvc.lock").write_text("stages: {train@tiny: {params: null}}")
    check_training_options(settings, tmp_path / "dvc.lock")
    assert checked[4:] == ["tiny", "small", "base"]


@pytest.mark.parametrize(
    ("targets", "variants"),
    [
        ([], ("tiny", "small", "base")),
        (["report"], ("tiny", "small", "base")),
        (["validate_data"], ()),
        (["train@tiny", "evaluate@base"], ("tiny", "base")),
    ],
)
def test_options_of_variants_that_are_not_trained_are_not_checked(
    targets: list[str], variants: tuple[str, ...]
) -> None:
    assert variants_of(targets) == variants


def test_without_options_mmdet_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmdet.models", None)  # an import of it is an error now
    check_training_options(settings_with(), tmp_path / "dvc.lock")

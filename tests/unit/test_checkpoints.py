"""Checkpoints load in every form in which DFvT weights are found; a bad file is one sentence, never code."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dfvt.models import DFvT
from dfvt.models.checkpoints import (
    load_backbone,
    load_weights,
    read_checkpoint,
    state_dict_of,
    variant_of,
)

REFERENCE = Path(__file__).parents[1] / "reference"

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


def narrow_backbone(embed_dim: int = 16, **options: Any) -> DFvT:
    return DFvT(embed_dim=embed_dim, num_heads=(1, 2, 4, 8), mlp_ratio=1.0, **options)


@pytest.fixture(scope="module")
def donor() -> dict[str, Tensor]:
    torch.manual_seed(0)
    backbone = narrow_backbone()
    backbone.init_weights()
    return backbone.state_dict()


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def assert_one_sentence(error: pytest.ExceptionInfo[ValueError], path: Path) -> None:
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 300 + len(str(path))


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_wrappers_and_prefixes_are_taken_off(wrapper: str | None, prefix: str) -> None:
    content: dict[str, Any] = {prefix + name: value for name, value in WEIGHTS.items()}
    if "backbone." in prefix:
        content |= {prefix.replace("backbone.", "neck.") + "b": torch.ones(1)}
    content = {wrapper: content, "epoch": 3} if wrapper else content
    assert_same(state_dict_of(content, "backbone."), WEIGHTS)


def test_both_wrappers_around_each_other_are_taken_off() -> None:
    assert_same(state_dict_of({"model": {"state_dict": WEIGHTS}}), WEIGHTS)
    assert_same(state_dict_of({"state_dict": {"model": WEIGHTS}}), WEIGHTS)


def test_a_detectors_weights_keep_their_parts_when_no_prefix_is_asked_for() -> None:
    content = {"state_dict": {"module.backbone.a": torch.ones(1), "module.neck.b": torch.ones(1)}}
    assert state_dict_of(content).keys() == {"backbone.a", "neck.b"}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip format", "format before torch 1.6"])
def test_both_file_formats_load(tmp_path: Path, zipped: bool) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_checkpoint(tmp_path / "w.pth")["state_dict"], WEIGHTS)


def test_numpy_values_in_meta_load(tmp_path: Path) -> None:
    kinds = ("bool", "int32", "int64", "longlong", "uint8", "uint32", "float16", "float32", "float64")
    meta: dict[str, Any] = {kind: np.ones(1, kind)[0] for kind in kinds} | {
        "array": np.arange(3),
        "text": np.str_("car"),
    }
    torch.save({"meta": meta, "state_dict": WEIGHTS}, tmp_path / "w.pth")
    loaded = read_checkpoint(tmp_path / "w.pth")["meta"]
    assert {k: v for k, v in loaded.items() if k != "array"} == {
        k: v for k, v in meta.items() if k != "array"
    }
    assert np.array_equal(loaded["array"], meta["array"])


def test_numpy_scalars_written_by_numpy_1_load(tmp_path: Path) -> None:
    torch.save({"lr": np.float64(0.5)}, tmp_path / "new.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "new.pth").read_bytes()
    assert b"numpy._core.multiarray" in content
    (tmp_path / "old.pth").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "old.pth") == {"lr": 0.5}


@pytest.mark.parametrize("name", ["yacs.config.CfgNode", "mmcv.utils.config.ConfigDict"])
def test_the_config_that_training_codes_put_beside_the_weights_is_read_as_plain_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, _, kind = name.rpartition(".")
    config = type(kind, (dict,), {"__module__": module})
    with monkeypatch.context() as patch:
        stand_in = types.ModuleType(module)
        setattr(stand_in, kind, config)
        patch.setitem(sys.modules, module, stand_in)
        if module.startswith("yacs"):
            patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        node = config(lr=0.1, nested=config(depth=2))
        node.__dict__["__immutable__"] = True
        torch.save({"model": WEIGHTS, "config": node, "args": argparse.Namespace(seed=1)}, tmp_path / "w.pth")
    loaded = read_checkpoint(tmp_path / "w.pth")
    assert loaded["config"] == {"lr": 0.1, "nested": {"depth": 2}}
    assert_same(state_dict_of(loaded), WEIGHTS)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint nowhere/w.pth does not exist"):
        read_checkpoint("nowhere/w.pth")


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(fraction=st.floats(0, 1, exclude_max=True), zipped=st.booleans())
def test_a_file_cut_anywhere_is_refused_in_one_sentence(
    tmp_path: Path, fraction: float, zipped: bool
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": WEIGHTS, "meta": {"epoch": 1}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert_one_sentence(error, path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda b: b"\x80\x02" + b)))
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_checkpoint(path)
    assert_one_sentence(error, path)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(2), "text"])
def test_a_checkpoint_of_something_else_than_weights_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a dictionary of weights"):
        read_checkpoint(tmp_path / "w.pth")


class Intruder:
    """Pickles to a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "w.pth", tmp_path / "ran"
    content = {"state_dict": WEIGHTS, "meta": Intruder(mark)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Intruder(mark), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match="was not loaded") as error:
        read_checkpoint(path)
    assert_one_sentence(error, path)
    assert not mark.exists()


def test_a_whole_detectors_checkpoint_fills_the_backbone(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    detector = {f"backbone.{name}": value for name, value in donor.items()} | {"neck.w": torch.ones(1)}
    torch.save({"state_dict": detector}, tmp_path / "w.pth")
    backbone = narrow_backbone()
    load_backbone(backbone, tmp_path / "w.pth")
    assert_same(backbone.state_dict(), donor)


@pytest.mark.parametrize("how", ["pretrained", "init_cfg"])
def test_a_pretrained_backbone_starts_from_its_file(
    tmp_path: Path, donor: dict[str, Tensor], how: str
) -> None:
    """A classifier has a head, and neither output norms nor fusions, which keep their initial weights."""
    path = tmp_path / "w.pth"
    classifier = {k: v for k, v in donor.items() if not k.startswith(("norm", "conv1x1layers"))}
    torch.save({"model": classifier | {"head.weight": torch.ones(10, 128)}}, path)
    backbone = (
        narrow_backbone(pretrained=str(path))
        if how == "pretrained"
        else narrow_backbone(init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    )
    backbone.init_weights()
    state = backbone.state_dict()
    assert_same({name: state[name] for name in classifier}, classifier)
    assert torch.equal(backbone.norm3.weight, torch.ones(128))


def test_another_variants_file_is_refused_with_both_shapes(tmp_path: Path, donor: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pth"
    torch.save(donor, path)
    with pytest.raises(
        ValueError, match=r"patch_embed\.proj1\.weight.*\[8, 3, 3, 3\].*\[16, 3, 3, 3\]"
    ) as error:
        load_backbone(narrow_backbone(embed_dim=32), path)
    assert_one_sentence(error, path)


def detector_entries(variant: str) -> dict[str, Tensor]:
    shapes = json.loads((REFERENCE / "state_dict_keys.json").read_text())[variant]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def test_variants_are_recognised_by_their_shapes() -> None:
    for variant, name in (("tiny", "DFvT-T"), ("small", "DFvT-S"), ("base", "DFvT-B")):
        entries = detector_entries(variant)
        assert variant_of(entries) == name
        assert variant_of(state_dict_of(entries, "backbone.")) == name
    assert variant_of(narrow_backbone().state_dict()) is None
    assert variant_of(nn.Linear(2, 3).state_dict()) is None


def test_what_does_not_fit_is_one_sentence_with_all_kinds_of_misfits(tmp_path: Path) -> None:
    path, model = tmp_path / "w.pth", nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    torch.save(
        {
            "0.weight": torch.ones(3, 2),
            "0.bias": torch.ones(5),
            "1.weight": torch.ones(4, 3),
            "2.x": torch.ones(1),
        },
        path,
    )
    with pytest.raises(
        ValueError,
        match=r"1 of 4 entries have another shape \(0\.bias \[5\] instead of \[3\]\); "
        r"1 of 4 entries are missing \(1\.bias\); 1 of 4 entries of the file have no place \(2\.x\)",
    ) as error:
        load_weights(model, path)
    assert_one_sentence(error, path)
    assert not torch.equal(model[1].weight, torch.ones(4, 3)), "nothing is filled"


def test_a_deeper_variants_file_is_refused_though_every_entry_that_is_wanted_fits(tmp_path: Path) -> None:
    torch.save(narrow_backbone(depths=(1, 1, 3, 1)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"layers\.2\.blocks\.2"):
        load_backbone(narrow_backbone(), tmp_path / "w.pth")


def test_a_file_of_other_weights_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "w.pth")
    before = narrow_backbone()
    kept = {name: value.clone() for name, value in before.state_dict().items()}
    with pytest.raises(ValueError, match=r"entries are missing \(patch_embed\.proj1\.weight, ") as error:
        load_backbone(before, tmp_path / "w.pth")
    assert_one_sentence(error, tmp_path / "w.pth")
    assert_same(before.state_dict(), kept)

"""Configs that others wrote are data: read as what they say, and never executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config

from dfvt.engine.config import load_config, write_config
from dfvt.engine.plain import config_json, load_plain_config, plain_values, read_plain_values

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", ["mini/maskrcnn_DFvT_tiny_mini.py", "fast/maskrcnn_DFvT_base_1x_coco.py"])
def test_a_written_config_reads_back_as_mmcv_reads_it(path: str, tmp_path: Path) -> None:
    write_config(load_config(CONFIGS / path), tmp_path / "config.py")
    expected, cfg = load_config(tmp_path / "config.py"), load_plain_config(tmp_path / "config.py")
    assert cfg._cfg_dict == expected._cfg_dict
    assert load_plain_config(tmp_path / "config.py", {"runner.max_epochs": 7}).runner.max_epochs == 7
    (tmp_path / "config.json").write_text(config_json(cfg))
    assert read_plain_values(tmp_path / "config.json") == plain_values(expected._cfg_dict)
    with pytest.raises(ValueError, match=r"config .*config\.py"):
        load_plain_config(tmp_path / "config.py", {"nonsense.key": 1})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=VALUES)
def test_any_literal_is_read_as_it_was_written(
    value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("plain") / "config.py"
    path.write_bytes(
        f"value = {value!r}\nnested = dict(a=[dict(b={value!r})])\n".encode("utf-8", "surrogatepass")
    )
    assert read_plain_values(path) == {"value": value, "nested": {"a": [{"b": value}]}}
    json.loads(config_json(Config({"value": value})))


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "a = open('executed', 'w')",
        "a = [dict(b=open('executed', 'w'))]",
        "a = dict(**open('executed', 'w'))",
        "a = {open('executed', 'w'): 1}",
        'a = f\'{open("executed", "w")}\'',
        "a = [open('executed', 'w') for _ in 'a']",
        "a = (lambda: open('executed', 'w'))()",
        "a = float(open('executed', 'w'))",
        "a = {**{}}",
        "open('executed', 'w')",
        "a.b = 1",
        "a = b = 1; a += 1",
        "a = name",
        "def f(): ...",
        "a = " + "-" * 5000 + "1",
        "a = " + "[" * 500,
        "a = (",
    ],
)
def test_what_is_more_than_values_is_refused_in_a_sentence(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.py"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=r"config .*config\.py") as caught:
        load_plain_config(path)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["config.py"]


def test_reading_a_config_as_data_does_not_import_mmdet() -> None:
    program = "import sys, dfvt.engine.plain; print('mmdet' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "dfvt compare would take seconds longer"

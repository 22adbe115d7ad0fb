"""A config as text that reads back equal, whatever text is in it, and the config of such a text."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmcv import Config
from yapf.yapflib.yapf_api import FormatCode

from dfvt.engine.custom_modules import import_custom_modules

INDENT = 4
STYLE = {  # mmcv's own, so that ordinary configs have the text, and the hash, that mmcv gives them
    "based_on_style": "pep8",
    "blank_line_before_nested_class_or_def": True,
    "split_before_expression_after_opening_paren": True,
}


def config_text(cfg: Config, *, formatted: bool = True) -> str:
    """Write a config as Python, as mmcv's `Config.pretty_text` does.

    mmcv writes strings without escapes: an apostrophe in a path gives a file that is no Python, and
    `{{ fileDirname }}` reads back as another value. For a config without such strings both texts are the
    same, byte by byte.

    Args:
        cfg: any config.
        formatted: lay the text out for readers, which takes seconds for a published config.

    Raises:
        ValueError: a name at the top is none that Python could assign to.
    """
    content: dict[Any, Any] = cfg._cfg_dict.to_dict()
    for name in content:
        if not _is_name(name):
            raise ValueError(f"the config has the key {name!r}, which is no name in Python: rename it")
    text = "\n".join(_entries(content, "=", ends=False)) + "\n"
    return FormatCode(text, style_config=STYLE)[0] if formatted else text


def read_config_text(text: str) -> Config:
    """Read what `config_text` wrote, and import the modules of its `custom_imports`.

    Raises:
        ValueError: a module cannot be imported here.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, "config.py")
        path.write_text(text, encoding="utf-8")
        cfg = Config.fromfile(str(path), import_custom_modules=False)
    import_custom_modules(cfg)
    return cfg


def _is_name(key: object) -> bool:
    return str(key).isidentifier() and not keyword.iskeyword(str(key))


def _mapping(content: Mapping[Any, Any]) -> str:
    """What stands between `dict(` and `)`."""
    if all(map(_is_name, content)):
        return "\n".join(_entries(content, "=", ends=True))
    return "{" + "\n".join(_entries(content, ": ", ends=True)) + "}"


def _entries(content: Mapping[Any, Any], sign: str, *, ends: bool) -> list[str]:
    entries = []
    for key, value in content.items():
        name = str(key) if sign == "=" else _plain(key)
        if isinstance(value, dict):
            text = _indented(f"{name}{sign}dict(\n{_mapping(value)}") + ")"
        elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
            items = "\n".join(f"dict({_indented(_mapping(item))})," for item in value).rstrip(",")
            text = _indented(f"{name}{sign}[\n{items}") + "]"
        else:
            text = _indented(f"{name}{sign}{_plain(value)}")
        entries.append(text)
    return [f"{entry}," for entry in entries[:-1]] + entries[-1:] if ends else entries


def _indented(text: str) -> str:
    return text.replace("\n", "\n" + " " * INDENT)


def _plain(value: Any) -> str:
    """A value on one line, as `repr` has it, but for numbers that have no literal and braces of mmcv's."""
    if isinstance(value, str):
        return repr(value).replace("{{", "{\\x7b")  # mmcv replaces {{ names }} in what it reads
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{float(value)}')"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_plain, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_plain(key)}: {_plain(item)}" for key, item in value.items()) + "}"
    return str(value)

"""Configs as data: files that a run, a model or a server gives are read, and never executed."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcv import Config


def load_plain_config(path: Path, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Read a config that `dfvt.engine.config.write_config` wrote, and apply `cfg_options` (dotted keys).

    mmcv would execute the file. Here nothing is executed: a file that holds more than values is refused.

    Raises:
        FileNotFoundError: the config is missing.
        ValueError: it holds more than plain values, or an option's key is one that nothing reads.
    """
    cfg = Config(read_plain_values(path), filename=str(path))
    if cfg_options:
        from dfvt.engine.options import merge_options  # imports mmdet, which takes seconds

        try:
            merge_options(cfg, cfg_options)
        except ValueError as error:
            raise ValueError(f"config {path}: {error}") from error
    return cfg


def read_plain_values(path: Path) -> dict[str, Any]:
    """Return the values that a config's file assigns to names: a `.json` file, or Python without `_base_`.

    Values are literals and `dict(name=value)`, nested as they like. Names that begin with `__` are left out,
    as mmcv does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything else.
    """
    content = path.read_bytes()
    try:
        if path.suffix == ".json":
            values = json.loads(content)
            if not isinstance(values, dict):
                raise ValueError(f"config {path} holds no object of JSON")
            return values
        statements = ast.parse(content).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"config {path} cannot be read as plain values: {error}") from error
    values = {}
    for statement in statements:
        try:
            match statement:
                case ast.Expr(value=ast.Constant(value=str())):  # a docstring
                    continue
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    values[name] = _value_of(value)
                case _:
                    raise ValueError("it is no assignment of a value to a name")
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"config {path}, line {statement.lineno}, holds more than plain values and is not executed: "
                f"{error}"
            ) from error
    return {name: value for name, value in values.items() if not name.startswith("__")}


def _value_of(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            values: dict[Any, Any] = {}
            for keyword in keywords:
                if keyword.arg is None:  # dict(**{"not a name": 1})
                    values |= _value_of(keyword.value)
                else:
                    values[keyword.arg] = _value_of(keyword.value)
            return values
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str(text))], keywords=[]):
            return float(text)
        case ast.Dict(keys=keys, values=items):
            if None in keys:
                raise ValueError("{**values} is no plain value")
            pairs = zip(keys, items, strict=True)
            return {ast.literal_eval(key): _value_of(item) for key, item in pairs if key is not None}
        case ast.List(elts=items):
            return [_value_of(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value_of(item) for item in items)
        case ast.Call() | ast.Attribute() | ast.Name():
            raise ValueError(f"{ast.unparse(node)[:80]!r} is no plain value")
        case _:
            return ast.literal_eval(node)


def config_json(cfg: Config) -> str:
    """Return a config as JSON, for programs that compare configs: tuples are lists there."""
    return json.dumps(plain_values(cfg._cfg_dict), indent=2, ensure_ascii=False) + "\n"


def plain_values(value: Any) -> Any:
    """Return a config's value as JSON holds it: tuples and sets as lists, numbers that are none as text."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain_values(item) for item in value), key=str)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)

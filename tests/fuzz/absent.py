"""Stands for libraries that the stages import and a machine may lack: Ray and MLflow."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LIBRARIES = ("ray", "mlflow")


class _AnyClass(type):
    """Its classes have every attribute, which is such a class again."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return nothing(name)


def nothing(name: str) -> Any:
    """A class that can be called, inherited from, raised and used as a decorator, and does nothing."""

    def take(self: Any, *_: object, **__: object) -> None:
        pass

    return _AnyClass(name, (Exception,), {"__init__": take, "__class_getitem__": lambda key: nothing(name)})


def attribute(name: str) -> Any:
    """An attribute of a module that is absent; what Python itself asks for is not there."""
    if name.startswith("__"):
        raise AttributeError(name)
    return nothing(name)


class _Absent(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = attribute  # type: ignore[method-assign]


@cache
def provide_absent_libraries() -> None:
    """Makes those of `LIBRARIES` that are not installed importable, for this process."""
    absent = [name for name in LIBRARIES if find_spec(name) is None]
    if absent:
        sys.meta_path.append(_Absent(absent))

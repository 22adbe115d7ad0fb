"""Imports of large libraries in less time.

mmcv and mmdet import some libraries for one function each. `mmcv.runner.checkpoint` imports torchvision, and
with it torch's compiler, for addresses `torchvision://…`. mmdet's head of PAA imports scikit-learn, and with
it pandas and SciPy, for the targets of its training. They take half of the time of importing mmdet.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from types import ModuleType
from typing import Any

POSTPONED = {  # a package comes before its modules
    "mmcv.runner.checkpoint": ("torchvision",),
    "mmdet.core.visualization.image": ("matplotlib.pyplot",),
    "mmdet.models.dense_heads.paa_head": ("sklearn", "sklearn.mixture"),
}
RARELY = (
    200_000,
    20,
    100,
)  # objects made before a collection of the young, and of those how many before others


def postpone_imports() -> None:
    """Let each module of `POSTPONED` import the libraries that are named there when it uses them.

    All other modules, such as a user's own, import these libraries as usual. Entry points call this function
    before they import anything of mmcv.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for garbage more rarely in the body, or in a function that this decorates.

    Libraries make a million objects and little garbage when they are imported. Python's own thresholds take a
    fifth of the time of a command that does not do much more.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class _Finder(MetaPathFinder):
    """Finds the modules of `POSTPONED`, which then are run by `_Loader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in POSTPONED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        return spec_from_file_location(fullname, spec.origin, loader=_Loader(fullname, spec.origin))


class _Loader(SourceFileLoader):
    """Runs a module, for which there are stand-ins of what it imports too early."""

    def exec_module(self, module: ModuleType) -> None:
        with _stand_ins(POSTPONED[module.__name__]):
            super().exec_module(module)


class _StandIn(ModuleType):
    """A module that is imported when one of its attributes is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def _stand_ins(names: Sequence[str]) -> Iterator[None]:
    """Let imports of `names` in the body give stand-ins.

    A module that is imported already, or that is not installed, has none.
    """
    absent = [name for name in names if name not in sys.modules and find_spec(name.partition(".")[0])]
    stand_ins = {name: _StandIn(name) for name in absent}
    for name, stand_in in stand_ins.items():
        package, _, last = name.rpartition(".")
        if package in stand_ins:
            setattr(stand_ins[package], last, stand_in)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]

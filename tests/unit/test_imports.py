"""Large libraries are imported when they are used, and who uses them notices nothing."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

from dfvt.engine import imports
from dfvt.engine.imports import postpone_imports, rare_collections

EARLY = """
try:
    import costly.part as part
except ImportError:
    part = None

def use():
    return part.value
"""


@pytest.fixture
def early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a module `early`, whose import of a module in the package `costly` is postponed."""
    (tmp_path / "early.py").write_text(EARLY)
    (tmp_path / "costly").mkdir()
    (tmp_path / "costly/__init__.py").write_text("name = 'costly'\n")
    (tmp_path / "costly/part.py").write_text("value = 'a part'\n")
    (tmp_path / "users.py").write_text("import early\nfrom costly import name\nimport costly.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "POSTPONED", {"early": ("costly", "costly.part")})
    with mock.patch.dict(sys.modules), mock.patch.object(sys, "meta_path", list(sys.meta_path)):
        postpone_imports()
        yield tmp_path


def test_a_library_is_imported_when_it_is_used(early: Path) -> None:
    module = import_module("early")
    assert not {"costly", "costly.part"} & set(sys.modules)
    assert module.use() == "a part"
    assert {"costly", "costly.part"} <= set(sys.modules)


def test_another_module_gets_the_library_itself(early: Path) -> None:
    users = import_module("users")
    assert users.name == "costly" and users.costly.__file__ == str(early / "costly/__init__.py")
    assert import_module("early").use() == "a part"


def test_a_library_that_is_used_while_the_module_is_imported_is_there(early: Path) -> None:
    with (early / "early.py").open("a") as source:
        source.write("at_once = use()\n")
    assert import_module("early").at_once == "a part"


def test_a_library_that_is_not_installed_is_missed_at_once(early: Path) -> None:
    (early / "costly").rename(early / "cheap")
    assert import_module("early").part is None


def test_a_library_that_was_imported_before_is_taken(early: Path) -> None:
    part = import_module("costly.part")
    assert import_module("early").part is part


def test_garbage_is_collected_more_rarely_for_a_while() -> None:
    before = gc.get_threshold()
    with pytest.raises(ValueError), rare_collections():
        assert gc.get_threshold() > before
        raise ValueError
    assert gc.get_threshold() == before

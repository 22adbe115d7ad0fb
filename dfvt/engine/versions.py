"""Which code and libraries a training ran with, to say so when others go on from its state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import torch

import dfvt

VERSIONS = "versions"  # the entry of a checkpoint's meta data
PACKAGES = ("data", "engine", "models")  # of dfvt, whose code decides what a training learns


@cache
def present_versions() -> dict[str, str]:
    """The versions of this process by name; `code` is a hash of the source files of `PACKAGES`."""
    root = Path(dfvt.__file__).parent
    digest = sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return {
        "dfvt": dfvt.__version__,
        "code": digest.hexdigest()[:12],
        "torch": str(torch.__version__),  # torch has a class of its own for it
        "mmcv": mmcv.__version__,
        "mmdet": mmdet.__version__,
    }


def continued_versions(meta: Mapping[str, Any]) -> tuple[list[dict[str, str]], list[str]]:
    """All versions that a training has had, the present ones last, and what changed since its state.

    Args:
        meta: the state's meta data. Those of earlier versions of dfvt do not say which code wrote them.
    """
    before, now = list(meta.get(VERSIONS, [])), present_versions()
    if not before:
        return [now], ["the state does not say which code wrote it"]
    last = before[-1]
    changes = [
        f"{name} {last.get(name, 'unknown')}, now {now.get(name, 'unknown')}"
        for name in dict.fromkeys([*last, *now])
        if last.get(name) != now.get(name)
    ]
    return ([*before, now] if changes else before), changes

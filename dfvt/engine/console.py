"""Keeping mmcv, pycocotools and torch from talking on the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from types import ModuleType

from wrapt import register_post_import_hook

from dfvt.engine.imports import postpone_imports


def quiet_libraries() -> None:
    """Silence what tells a user nothing. Called by entry points, before they import anything of mmcv.

    This function imports none of these libraries: not every command needs them, and they take seconds. It
    also lets mmcv and mmdet import later what they seldom need, see `postpone_imports`.

    These are mmcv's notice of its next major version and its list of every initialised weight, mmdet's that
    there is a newer word for `pretrained`, and torch's notices that a CUDA toolkit is there and a GPU is not,
    and that gradients of 1×1 convolutions have other strides than their place, in which they lie the same.
    """
    warnings.filterwarnings("ignore", message="On January 1, 2023, MMCV", category=UserWarning)
    warnings.filterwarnings("ignore", message="DeprecationWarning: pretrained is deprecated")
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    register_post_import_hook(_quiet_mmcv, "mmcv.utils")
    postpone_imports()


def _quiet_mmcv(utils: ModuleType) -> None:
    utils.get_logger("mmcv").setLevel(logging.WARNING)  # its own argument counts for a new logger only


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Drops what the body prints on standard output, as pycocotools does when it reads and evaluates."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        yield

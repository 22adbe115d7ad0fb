"""What several benchmarks are given, refused in a sentence if it cannot be."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from pathlib import Path

VARIANTS = ("tiny", "small", "base")


def coco_folder(text: str) -> Path:
    """A folder with the annotations and images that trainings of the benchmarks take.

    Raises:
        ArgumentTypeError: it has not both.
    """
    for part in ("annotations/instances_train2017.json", "train2017"):
        if not Path(text, part).exists():
            raise ArgumentTypeError(f"{text} has no {part}")
    return Path(text)


def whole(text: str) -> int:
    """A whole number from 1.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def workers(text: str) -> int:
    """A number of loader processes; without any a training loads by itself.

    Raises:
        ArgumentTypeError: it is none.
    """
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} must be a whole number from 0")
    return int(text)


def positive(text: str) -> float:
    """A number above 0.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"{text!r} must be a number above 0")
    return number


def counts(text: str) -> list[int]:
    """Numbers of GPUs, as in 1,2,4, each once.

    Raises:
        ArgumentTypeError: one is no whole number from 1.
    """
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise ArgumentTypeError(f"{text!r} must be whole numbers from 1, as in 1,2,4")
    return list(dict.fromkeys(map(int, numbers)))

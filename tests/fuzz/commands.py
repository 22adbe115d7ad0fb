"""The commands of `dfvt` that a user runs on a data set, and what they must have written."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from itertools import chain
from pathlib import Path

from tests.fuzz.data_sets import DataSet
from tests.fuzz.failures import StageError, described, require_pictures, stage

VARIANT = "tiny"


def command(name: str, *arguments: str, encoding: str) -> tuple[int, str]:
    """Runs a command of `dfvt` on a terminal of an encoding; its exit code, and what it prints as errors."""
    from dfvt.cli import main

    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)
    errors = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace", write_through=True)
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            code = main(list(arguments))
    except SystemExit as error:
        code = int(error.code or 0) if isinstance(error.code, int | None) else 1
    except Exception as error:
        raise StageError(name, described(error)) from error
    errors.flush()
    printed = errors.buffer.getvalue().decode(encoding, "replace")  # type: ignore[attr-defined]
    if code not in (0, 2):
        raise StageError(name, f"exit code {code}: {printed[-300:]}")
    require_pictures(name, printed)
    return code, printed


def check(data: DataSet, project: Path) -> bool:
    """Whether `dfvt data check` finds problems in the two splits that the stage finds too."""
    splits = [data.train] if data.train.annotations == data.val.annotations else [data.train, data.val]
    paths = [(f"--annotations={one.annotations}", f"--images={one.folder}") for one in splits]
    code, printed = command(
        "data check",
        *("data", "check", str(project / data.root), *chain.from_iterable(paths)),
        *("--out", str(project / "checked")),
        encoding=data.encoding,
    )
    last = printed.strip().splitlines()[-1:]
    if code and not any("problem" in line for line in last):
        raise StageError("data check", f"it ends with {last}")
    # The command takes a split for one to train on unless its name says otherwise; the stage knows it.
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    return any("such images are not trained on" not in line for line in problems)


def browse(data: DataSet, project: Path, *, is_sound: bool) -> None:
    """`dfvt data browse` of the validation images."""
    page = project / "browse.html"
    code, printed = command(
        "data browse",
        *("data", "browse", str(project / data.root)),
        *(f"--annotations={data.val.annotations}", f"--images={data.val.folder}", "--out", str(page)),
        encoding=data.encoding,
    )
    if not is_sound:
        return
    if code:
        raise StageError("data browse", printed)
    with stage("data browse, its page"):
        text = page.read_text(encoding="utf-8")
        captions = re.findall(r"<figcaption>(.*?)</figcaption>", text, re.DOTALL)
        assert len(captions) == len(data.val.images), captions
        sizes = {image.file: image.upright for image in data.val.images}  # two images may share one file
        for image in data.val.images:
            width, height = sizes[image.file]
            assert any(f"{width}×{height}: " in caption for caption in captions), (image, captions)


def predict(data: DataSet, project: Path) -> None:
    """`dfvt predict` on the validation images; it finds what the evaluation found."""
    files = list(
        dict.fromkeys(str(project / data.root / data.val.folder / one.name) for one in data.val.images)
    )
    run, out = project / "runs" / VARIANT, project / "predicted"
    code, printed = command(
        "predict",
        *("predict", str(run / "config.py"), str(run / "checkpoint.pth"), *files),
        *("--out", str(out), "--score", "0", "--gpus", "0"),
        encoding=data.encoding,
    )
    if code:
        raise StageError("predict", printed)
    with stage("predict, its files"):
        require_predictions(data, project, out, len({Path(file) for file in files}))


def require_predictions(data: DataSet, project: Path, out: Path, num_files: int) -> None:
    """Asserts that each image has its own picture, and the boxes that the evaluation has."""
    found = json.loads((out / "predictions.json").read_bytes())
    assert len(found["images"]) == num_files, found["images"]
    pictures = {one["picture"] for one in found["images"]}
    assert len(pictures) == num_files, f"{num_files} images, the pictures {sorted(pictures)}"
    missing = [picture for picture in pictures if not (out / picture).is_file()]
    assert not missing, f"no picture {missing}"
    evaluated = json.loads(Path("evaluations", VARIANT, "predictions.bbox.json").read_bytes())
    folder = project / data.root / data.val.folder
    for image in data.val.images:
        here = next(one for one in found["images"] if Path(one["file_name"]) == folder / image.name)
        assert (here["width"], here["height"]) == image.upright, (image, here)
        there = sorted(one["score"] for one in evaluated if one["image_id"] == image.id)
        scores = sorted(one["score"] for one in found["annotations"] if one["image_id"] == here["id"])
        same = len(there) == len(scores) and all(
            abs(a - b) < 1e-4 for a, b in zip(there, scores, strict=True)
        )
        assert same, f"{image.name!r} {image.kind}: predict finds {scores}, evaluate {there}"

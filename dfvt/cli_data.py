"""The commands `dfvt data check` and `dfvt data browse`."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dfvt.data.coco import SplitFiles


def add_data_commands(commands: _SubParsersAction) -> None:
    """Adds `data` with its commands."""
    summary = "Check a data set in COCO layout, or look at it."
    data = commands.add_parser("data", help=summary, description=summary)
    actions = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    check = _folder_command(actions, "check", "Check every annotation and image; exit code 2 with problems.")
    check.add_argument(
        "--headers-only", action="store_true", help="read the images' headers alone, not pixels"
    )
    check.add_argument(
        "--color-type",
        choices=("color", "color_ignore_orientation"),
        default="color",
        help="how the config's LoadImageFromFile loads images; default: color, upright",
    )
    check.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write validation.json and validation.html there"
    )
    check.set_defaults(run=_check)
    browse = _folder_command(actions, "browse", "Draw images with boxes, masks and labels into a page.")
    browse.add_argument("--split", metavar="NAME", help="such as val2017; default: the first one")
    browse.add_argument("--class", dest="class_name", metavar="NAME", help="only images with this class")
    browse.add_argument("--num", type=int, default=48, help="images; default: 48")
    browse.add_argument("--seed", type=int, default=0, help="another one draws other images; default: 0")
    browse.add_argument("--out", type=Path, metavar="FILE.html", help="default: browse-SPLIT.html")
    browse.add_argument("--open", action="store_true", help="open it in the browser")
    browse.set_defaults(run=_browse)


def _folder_command(commands: _SubParsersAction, name: str, summary: str) -> ArgumentParser:
    made: ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    made.add_argument(
        "folder",
        type=Path,
        metavar="DIR",
        help="holds annotations/instances_NAME.json and the folders NAME or images/NAME of images",
    )
    made.add_argument(
        "--annotations",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an annotation file in DIR, in another layout; once for each split",
    )
    made.add_argument(
        "--images",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="the folder in DIR of its images; once for each file of --annotations, in the same order",
    )
    made.add_argument("--debug", action="store_true", help="show where an error comes from")
    return made


def _splits(options: Namespace) -> dict[str, SplitFiles]:
    from dfvt.data.coco import SplitFiles, find_splits

    files, folders = options.annotations, options.images
    if len(files) != len(folders):
        raise ValueError(
            f"--annotations is given {len(files)} times and --images {len(folders)} times: "
            "they belong together, give each file its folder"
        )
    if not files:
        return find_splits(options.folder)
    stems = Counter(file.stem for file in files)
    splits: dict[str, SplitFiles] = {}
    for file, folder in zip(files, folders, strict=True):
        name = file.stem if stems[file.stem] == 1 else str(file)
        if name in splits:
            raise ValueError(f"--annotations {file} is given twice: name each file once")
        splits[name] = SplitFiles(options.folder / file, options.folder / folder)
    return splits


def _check(options: Namespace) -> int:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from dfvt.data.files import require_folder, write_whole
    from dfvt.data.validation import check_splits
    from dfvt.reports.dataset import count_rows, verdict_of

    if options.out:
        require_folder(options.out)
    report = check_splits(
        _splits(options), decode_images=not options.headers_only, color_type=options.color_type
    )
    table = Table("", box=SIMPLE)
    for name in report.splits:
        table.add_column(name, justify="right")
    for row in count_rows(report):
        table.add_row(*row)
    Console().print(table)
    for kind, lines in (("warning", report.warnings), ("problem", report.problems)):
        for line in lines:
            print(f"{kind}: {line}")
    if options.out:
        from dfvt.reports.dataset_page import save_dataset_page

        # not pydantic's own JSON, which refuses names of files that are not UTF-8
        write_whole(options.out / "validation.json", json.dumps(report.model_dump(), indent=2) + "\n")
        save_dataset_page(report, str(options.folder), options.out / "validation.html")
    verdict = f"{options.folder}: {verdict_of(report)}"
    if report.problems:
        print(f"dfvt: {verdict}", file=sys.stderr)
        return 2
    print(verdict)
    return 0


def _browse(options: Namespace) -> None:
    from dfvt.data.files import require_folder
    from dfvt.reports.browse import save_browse_page

    if options.num < 1:
        raise ValueError(f"--num {options.num} is below 1")
    splits = _splits(options)
    name = options.split or next(iter(splits))
    if name not in splits:
        raise ValueError(f"{options.folder} has no split {name!r}: it has {', '.join(splits)}")
    out = options.out or Path(f"browse-{name.replace('/', '-')}.html")
    if out.exists() and not out.is_file():
        raise ValueError(f"{out} is no file: name one for the page")
    require_folder(out.parent)
    save_browse_page(
        splits[name],
        out,
        title=f"{options.folder}, {name}",
        num_images=options.num,
        class_name=options.class_name,
        seed=options.seed,
    )
    print(out)
    if options.open:
        import webbrowser

        webbrowser.open(out.absolute().as_uri())

"""The commands `dfvt compare` and `dfvt runs find`."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dfvt.engine.imports import rare_collections

if TYPE_CHECKING:
    from dfvt.tracking.mlflow import RunRecorder
    from dfvt.tracking.runs import RunInfo

RUN_NOTE, TRIAL_NOTE = NOTES = ("run.json", "trial.json")  # beside the curve files, they name the run
TRAININGS = (
    "runs/*/run.json",
    ".dfvt/train/*/run.json",
    ".dfvt/sweeps/*/run.json",
    ".dfvt/sweeps/*/trials/*/trial.json",
)
CONFIG_FILES = ("config.json", "config.py")  # of a run; earlier versions kept the second alone
MOST_CONFIGS = 10  # of so many runs the configs are fetched and compared
WIDE = 200  # columns where no terminal says how many it has


def add_compare_commands(commands: _SubParsersAction) -> None:
    """Adds `compare` and `runs`."""
    summary = "Compare runs with each other and with the published results."
    compare = commands.add_parser("compare", help=summary, description=summary)
    compare.add_argument(
        "keys", nargs="*", metavar="RUN", help="a name, an id, a tag's value, or the beginning of one"
    )
    compare.add_argument("--sweep", metavar="NAME", help="the trials of a sweep")
    compare.add_argument("--metric", default="bbox_mAP", help="what best means; default: bbox_mAP")
    compare.add_argument(
        "--each", action="store_true", help="a row a run, not one for the seeds of a setting"
    )
    compare.add_argument("--all", action="store_true", help="also runs that failed or are not at their end")
    compare.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write compare.md, .csv and .html there, and pareto.png where FLOPs are known",
    )
    compare.add_argument(
        "--gate",
        nargs="?",
        type=float,
        const=0.005,
        metavar="MAP",
        help="exit with 1 if a mean is more than this below the published mAP, a fraction of 0 to 1; "
        "default: 0.005, half a percent point",
    )
    _experiment_arguments(compare)
    compare.set_defaults(run=_compare)
    summary = "Find runs in MLflow, and send it what it lacks."
    runs = commands.add_parser("runs", help=summary, description=summary)
    actions = runs.add_subparsers(title="commands", required=True, metavar="COMMAND")
    summary = "Runs by a name, an id, a commit, a hash, a sweep, or the beginning of one; all without it."
    find = actions.add_parser("find", help=summary, description=summary)
    find.add_argument("keys", nargs="*", metavar="KEY")
    _experiment_arguments(find)
    find.set_defaults(run=_find)
    _add_sync(actions)


def _add_sync(actions: _SubParsersAction) -> None:
    summary = (
        "Send MLflow what it has not, after an outage or a kill: whole runs that were filed in mlflow.db "
        "meanwhile, and points of the curve files."
    )
    sync = actions.add_parser("sync", help=summary, description=summary)
    sync.add_argument(
        "folders",
        nargs="*",
        type=Path,
        metavar="FOLDER",
        help="of a training; default: all trainings and trials of the project",
    )
    sync.add_argument("--debug", action="store_true", help="show where an error comes from")
    sync.set_defaults(run=_sync)


def _experiment_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--experiment", metavar="NAME", help="default: tracking.experiment of params.yaml")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")


@rare_collections()
def _runs(options: Namespace) -> tuple[str, list[RunInfo]]:
    """The store's address, and the runs that are asked for."""
    from dfvt.settings import TrackingSettings, load_settings
    from dfvt.tracking.addresses import tracking_uri
    from dfvt.tracking.runs import choose_runs, list_runs

    params = Path("params.yaml")
    tracking = load_settings(params).tracking if params.is_file() else TrackingSettings()
    uri = tracking_uri(Path.cwd())
    runs = list_runs(uri, options.experiment or tracking.experiment)
    return uri, choose_runs(runs, options.keys) if options.keys else runs


def _compare(options: Namespace) -> int:
    from dfvt.reports.compare import (
        COMPARABLE,
        by_data_set,
        markdown,
        missed,
        require_tolerance,
        rows_of,
    )
    from dfvt.tracking.runs import SWEEP_RUN

    if options.gate is not None:
        require_tolerance(options.gate)
    uri, runs = _runs(options)
    runs = [run for run in runs if SWEEP_RUN not in run.tags]  # a sweep as a whole is no detector
    if options.sweep:
        names = sorted({run.tags["dfvt.sweep"] for run in runs if "dfvt.sweep" in run.tags})
        if options.sweep not in names:
            raise ValueError(
                f"no run is of a sweep {options.sweep!r}; there are: {', '.join(names) or 'none'}"
            )
        runs = [run for run in runs if run.tags.get("dfvt.sweep") == options.sweep]
    left_out = Counter(run.status.lower() for run in runs if run.status != "FINISHED" and not options.all)
    runs = [run for run in runs if run.status.lower() not in left_out]
    if left_out:
        counts = ", ".join(f"{count} {status}" for status, count in left_out.items())
        print(f"dfvt: left out without --all: {counts}", file=sys.stderr)
    if not runs:
        raise ValueError("there are no such runs to compare: `dfvt runs find` lists what there is")
    rows_by_data = {
        data_set: rows_of(of_data, each=options.each, metric=options.metric)
        for data_set, of_data in by_data_set(runs).items()
    }
    rows = [row for of_data in rows_by_data.values() for row in of_data]
    if not options.all and not any(row.metric(options.metric) for row in rows):
        raise ValueError(f"none of the runs has a number {options.metric!r}")
    print(markdown(rows_by_data))
    if not all(row.metric("ms_per_image") for row in rows if "dfvt.sweep" not in row.first.tags):
        print("\nThe numbers of runs that were not evaluated are those of their last validation.")
    if not any(run.tags.get("dfvt.profile") == COMPARABLE for run in runs):
        print(f"\nNot beside the published results: those are of profile {COMPARABLE}.")
    if options.out:
        from dfvt.reports.compare_page import save_comparison

        files = save_comparison(rows_by_data, _config_differences(uri, runs), options.out)
        print(f"\nwritten: {', '.join(map(str, files))}")
    if options.gate is None:
        return 0
    below = missed(rows, options.gate)
    for sentence in below:
        print(f"dfvt: {sentence}", file=sys.stderr)
    return 1 if below else 0


def _config_differences(uri: str, runs: Sequence[RunInfo]) -> dict[str, dict[str, str]]:
    """Which keys of the runs' configs differ; of many runs nobody asks that.

    Others may have written the configs: they are read as data, and never executed.
    """
    if not 2 <= len(runs) <= MOST_CONFIGS:
        return {}
    from dfvt.engine.plain import plain_values, read_plain_values
    from dfvt.reports.compare import config_differences
    from dfvt.tracking.runs import fetch_artifact

    configs = {}
    with TemporaryDirectory() as folder:
        for run in runs:
            (place := Path(folder, run.run_id)).mkdir()
            for name in CONFIG_FILES:
                config = fetch_artifact(uri, run.run_id, name, place)
                if config is None:
                    continue
                try:
                    configs[f"{run.name} {run.run_id[:6]}"] = plain_values(read_plain_values(config))
                except ValueError as error:
                    reason = str(error).replace(str(config), name)
                    print(f"dfvt: run {run.run_id} is left out of the configs: {reason}", file=sys.stderr)
                break
    return config_differences(configs)


def _find(options: Namespace) -> int:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    _, runs = _runs(options)
    table = Table(box=SIMPLE)
    table.add_column("run", no_wrap=True, min_width=32)
    for title in ("name", "status", "variant", "git commit", "config", "data"):
        table.add_column(title)
    for run in runs:
        tags = [run.tags.get(tag, "")[:8] for tag in ("git.commit", "config.hash", "data.hash")]
        cells = [run.run_id, run.name, run.status.lower(), run.tags.get("dfvt.variant", ""), *tags]
        table.add_row(*map(escape, cells))  # a name with brackets is no markup of rich's
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)
    return 0


def _noted(note: Path) -> dict[str, Any]:
    """What a training's note says of its run; a trial's store stands in the note of its sweep."""
    noted: dict[str, Any] = {}
    if note.name == TRIAL_NOTE and (of_sweep := note.absolute().parents[2] / RUN_NOTE).is_file():
        noted = json.loads(of_sweep.read_bytes())
    return noted | json.loads(note.read_bytes())


def _sync(options: Namespace) -> int:
    from dfvt.cluster.abandoned import end_if_abandoned
    from dfvt.cluster.mlflow_curves import send_missing
    from dfvt.tracking.addresses import artifact_root, tracking_uri
    from dfvt.tracking.reachable import require_reachable
    from dfvt.tracking.sending import send_deferred

    project = Path.cwd()
    require_reachable(tracking_uri(project))
    notes = [one for folder in options.folders for name in NOTES if (one := folder / name).is_file()]
    if len(notes) < len(options.folders):
        raise ValueError(f"each folder must hold {' or '.join(NOTES)}, which name its run")
    if not options.folders:
        notes = sorted(
            note
            for pattern in TRAININGS
            for note in Path().glob(pattern)
            if not note.parent.name.startswith(".")  # a folder that is being written or removed
        )
    try:
        recorders = _recorders_of(notes)
        for note, recorder in recorders.items():
            if status := end_if_abandoned(note, recorder):
                print(f"{note.parent}: nobody works on its run any more, it is now {status.lower()}")
        if not options.folders:
            sent, num_waiting = send_deferred(project, artifact_root(project))
            for name in sent:
                print(f"{name}: sent, with all that it has")
            if num_waiting:
                print(f"runs that go on, and are to be sent when they have ended: {num_waiting}")
            recorders = _recorders_of(recorders, say=False)  # some are elsewhere now
        num_points = 0
        for note, recorder in recorders.items():
            num_sent = send_missing(recorder, note.parent)
            if num_sent:
                print(f"{note.parent}: {num_sent} points sent")
            num_points += num_sent
    except ConnectionError as error:
        raise ValueError(str(error)) from error
    if not num_points:
        print(f"no point is missing: looked at the curve files of {len(recorders)} trainings")
    if options.folders and len(recorders) < len(notes):
        return 1
    return 0


def _recorders_of(notes: Iterable[Path], *, say: bool = True) -> dict[Path, RunRecorder]:
    """The runs of notes; those that no store of this project has, as in a clone, are said and left out."""
    from dfvt.tracking.deferred import attach_noted
    from dfvt.tracking.mlflow import RunNotFoundError

    recorders = {}
    for note in notes:
        try:
            recorders[note] = attach_noted(_noted(note), Path.cwd())
        except RunNotFoundError as error:
            if say:
                print(f"dfvt: {note.parent} is left out: {error}", file=sys.stderr)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{note} does not name an MLflow run: remove it") from error
    return recorders

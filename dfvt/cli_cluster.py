"""The commands of `dfvt` that are for clusters: `sweep` and `doctor`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from pathlib import Path

from dfvt.engine.imports import rare_collections


def add_cluster_commands(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Adds them to the parser of `dfvt`."""
    _add_sweep(commands)
    _add_doctor(commands)


def _add_sweep(commands: _SubParsersAction[ArgumentParser]) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="Search for the best detector.",
        description="Run the trials of a search, or show those of one that was begun.",
        usage="dfvt sweep SPEC [--plan | --submit [--home DIR]]\n"
        "       dfvt sweep status NAME|ADDRESS\n"
        "       dfvt sweep results NAME|ADDRESS [--out DIR]",
    )
    sweep.add_argument(
        "words",
        nargs="+",
        metavar="SPEC | status NAME | results NAME",
        help="a YAML file, see configs/sweeps; or what is to be shown of the sweep of a name, or of one at "
        "an address (s3://bucket/sweeps/NAME)",
    )
    start = sweep.add_mutually_exclusive_group()
    start.add_argument("--plan", action="store_true", help="list the trials and start nothing")
    start.add_argument(
        "--submit",
        action="store_true",
        help="hand the sweep to the cluster at RAY_API_SERVER_ADDRESS, which does not need this machine then",
    )
    sweep.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="where the cluster's nodes find data/dataset and weights and put .dfvt/sweeps, "
        "by default this folder",
    )
    sweep.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results go as results.csv and plots, by default .dfvt/sweeps/NAME/results",
    )
    sweep.add_argument("--debug", action="store_true", help="show where an error comes from")
    sweep.set_defaults(run=_sweep)


def _add_doctor(commands: _SubParsersAction[ArgumentParser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="Find out what would fail before it does.",
        description="Show whether this machine, or each node of a cluster, has what a training needs.",
    )
    doctor.add_argument("--cluster", action="store_true", help="of each node of the cluster at RAY_ADDRESS")
    doctor.add_argument("--debug", action="store_true", help="show where an error comes from")
    doctor.set_defaults(run=_doctor)


def _sweep(options: Namespace) -> int:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    match options.words:
        case ["status" | "results" as what, name]:
            _show_sweep(what, name, options.out)
        case [spec] if spec not in ("status", "results"):
            if options.submit:
                _submit_sweep(Path(spec), options.home or _home())
            elif options.plan:
                _plan_sweep(Path(spec))
            else:
                return _run_sweep(Path(spec))
        case words:
            raise ValueError(
                f"sweep {' '.join(words)}: write a spec's file, or status or results and a sweep's name"
            )
    return 0


def _plan_sweep(spec: Path) -> None:
    _say_loading(spec)
    from dfvt.cluster.plan import plan_lines
    from dfvt.cluster.preparation import prepare_sweep

    print("\n".join(plan_lines(prepare_sweep(spec, Path.cwd(), _home()))))


def _run_sweep(path: Path) -> int:
    """Run a sweep; return the exit code: 1 if no trial has a result."""
    _say_loading(path)
    from dfvt.cluster.preparation import prepare_sweep
    from dfvt.cluster.records import all_failed
    from dfvt.cluster.sweep import run_sweep
    from dfvt.reports.sweep import failure_lines, results_text

    sweep = prepare_sweep(path, Path.cwd(), _home())
    spec, records = sweep.spec, run_sweep(sweep)
    print(results_text(records, spec.metric, spec.mode))
    for line in failure_lines(records):
        print(line, file=sys.stderr)
    if all_failed(records, spec.metric):
        print(f"sweep {spec.name}: all {len(records)} trials failed", file=sys.stderr)
        return 1
    place = sweep.mirror.remote or spec.name
    print(f"as a file, with plots from three finished trials on: dfvt sweep results {place}", file=sys.stderr)
    return 0


def _say_loading(spec: Path) -> None:
    """Say what takes the first seconds."""
    print(f"sweep {spec.stem}: loads Ray, mmdet and MLflow", file=sys.stderr, flush=True)


@rare_collections()
def _doctor(options: Namespace) -> int:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from rich.console import Console

    from dfvt.cluster.doctor import dataset_of, examine_cluster, examine_here
    from dfvt.reports.doctor import doctor_table
    from dfvt.tracking.addresses import tracking_uri

    home = _home()
    if options.cluster:
        if not os.environ.get("RAY_ADDRESS"):
            raise ValueError("doctor --cluster examines the cluster at RAY_ADDRESS: set it")
        from dfvt.cluster.session import ray_session

        with ray_session() as connected:
            connected()
            reports = examine_cluster(dataset_of(home), tracking_uri(home))
    else:
        reports = [examine_here(home, tracking_uri(home))]
    console = Console(width=None if sys.stdout.isatty() else 200, soft_wrap=False)
    console.print(doctor_table(reports))
    problems = [problem for report in reports for problem in report.problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    what = f"{len(problems)} would fail" if problems else "nothing would fail"
    print(f"{len(reports)} node{'s' * (len(reports) > 1)} examined: {what}")
    return int(bool(problems))


def _home() -> Path:
    """Where data set, weights and sweeps are: this folder, or what a job on a cluster is told."""
    from dfvt.cluster.records import HOME

    return Path(os.environ.get(HOME) or Path.cwd())


def _submit_sweep(spec: Path, home: Path) -> None:
    from dfvt.cluster.records import mirror_of
    from dfvt.cluster.spec import load_spec
    from dfvt.cluster.submit import submit_sweep

    loaded = load_spec(spec)
    name = loaded.name
    job = submit_sweep(spec, name, Path.cwd(), home.absolute())
    kept = mirror_of(loaded, home).remote
    print(
        f"submitted as {job}; it goes on without this machine.\n"
        f"follow it:  ray job logs {job} --follow\n"
        f"stop it:    ray job stop {job} (submitted again, the sweep goes on)\n"
        f"see it:     dfvt sweep status {kept or f'{name}, in {home.absolute()}'}"
    )


def _show_sweep(what: str, name: str, out: Path | None) -> None:
    from dfvt.cluster.records import SWEEPS, load_sweep
    from dfvt.reports.sweep import failure_lines, results_text, status_line

    sweep = load_sweep(_home(), name)
    print(f"{sweep.name}: {status_line(sweep.trials, sweep.num_trials)}", file=sys.stderr)
    print(results_text(sweep.trials, sweep.metric, sweep.mode))
    for line in failure_lines(sweep.trials):
        print(line, file=sys.stderr)
    if what == "results":
        from dfvt.reports.sweep_results import write_results

        out = out or _home() / SWEEPS / sweep.name / "results"
        for file in write_results(sweep.trials, sweep.metric, sweep.mode, out):
            print(f"written: {file}", file=sys.stderr)

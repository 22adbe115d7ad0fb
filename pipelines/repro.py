"""Run the experiment: `dvc repro` that checks its input first and ends with a failed stage's exit code."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import psutil

from dfvt.settings import load_settings
from dfvt.terminal import escape_unencodable
from pipelines.inputs import check_inputs
from pipelines.stage import explain_os_error

if TYPE_CHECKING:
    from dvc.repo import Repo

REPORT = Path("reports/results.md")
WORKED_ON = "another `make repro` or command of DVC works in this project: wait for its end, or stop it"


def main() -> int:
    escape_unencodable()
    parser = ArgumentParser(
        prog="python -m pipelines.repro", description="Run the stages that are out of date."
    )
    parser.add_argument("targets", nargs="*", metavar="STAGE", help="only these and what they need")
    parser.add_argument("-f", "--force", action="store_true", help="run them even if nothing changed")
    options = parser.parse_args()
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        check_inputs(load_settings(), options.targets)
    except (ValueError, FileNotFoundError) as error:
        print(f"repro: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, end_stages)
    try:
        return reproduce(options.targets, force=options.force)
    except KeyboardInterrupt:
        wait_for_stages()
        print("repro: stopped; the same command carries on", file=sys.stderr)
        return 130


def end_stages(number: int, _: FrameType | None) -> NoReturn:
    """Pass a signal on to the running stage, wait for the end of the stage, and end this process.

    `timeout`, Slurm and systemd send the signal to the stage too, and `timeout` sends it twice. Then the
    stage or its shell may have ended already.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for stage in running_stages():
        with suppress(psutil.Error):
            stage.send_signal(number)
    wait_for_stages()
    sys.exit(128 + number)


def wait_for_stages() -> None:
    """Wait until no stage of this run is alive: a stage that was stopped still writes its state."""
    psutil.wait_procs(running_stages())


def running_stages() -> list[psutil.Process]:
    """The stage that runs below this process, or that its shell has left behind in this process group."""
    this, group = psutil.Process(), os.getpgrp()
    below = set(this.children(recursive=True))
    stages = []
    for process in {*below, *psutil.process_iter()} - {this, *this.parents()}:
        with suppress(psutil.Error, ProcessLookupError):  # it ended meanwhile, or is somebody else's
            # A stage of another `make repro` in this group has a parent in the group.
            is_orphan = os.getpgid(process.pid) == group and os.getpgid(process.ppid()) != group
            if process not in below and not (is_orphan and "DVC_STAGE" in process.environ()):
                continue
            if any(argument.partition(".")[0] == "pipelines" for argument in process.cmdline()):
                stages.append(process)
    return stages


def reproduce(targets: list[str], *, force: bool) -> int:
    """Run DVC's `repro` in this process; a stage that fails has said why, so nothing is added to it."""
    from dvc.exceptions import DvcException, NotDvcRepoError, ReproductionError
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.scm import SCMError
    from dvc.stage.exceptions import StageCmdFailedError

    started = time.monotonic()
    # The stages' "python" is the one that runs this, whether or not its environment is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        with Repo() as repo, former_results_kept(repo):
            stages = repo.reproduce(targets or None, force=force)
    except ReproductionError as error:
        cause = error.__cause__
        if isinstance(cause, StageCmdFailedError):
            wait_for_stages()
            return exit_code(str(cause))
        if isinstance(cause, OSError) and cause.filename:
            print(f"repro: {error}: {explain_os_error(cause)}", file=sys.stderr)
            return 2
        if isinstance(cause, LockError):
            print(f"repro: {WORKED_ON}", file=sys.stderr)
            return 1
        print(f"repro: {error}: {cause}", file=sys.stderr)
        return 1
    except LockError:
        print(f"repro: {WORKED_ON}", file=sys.stderr)
        return 1
    except SCMError as error:
        remedy = "run `git init` there, or clone the project with git"
        print(f"repro: {error}, which DVC needs: {remedy}", file=sys.stderr)
        return 2
    except NotDvcRepoError:
        remedy = "run this command in the project's folder, or copy the project with its hidden files"
        print(f"repro: {Path.cwd()} has no folder .dvc: {remedy}", file=sys.stderr)
        return 2
    except DvcException as error:
        print(f"repro: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"repro: {explain_os_error(error)}", file=sys.stderr)
        return 2
    print(closing_line(targets, len(stages), time.monotonic() - started), file=sys.stderr)
    return 0


def closing_line(targets: list[str], num_stages: int, seconds: float) -> str:
    """Return what ran, and where the report is if it is of these results."""
    what = f"ran {num_stages} stages" if num_stages else "nothing changed"
    with_report = not targets or "report" in targets
    report = (
        f"the report is {REPORT}"
        if with_report
        else f"{REPORT} was not written again, it may be of other results: `make repro` writes it"
        if REPORT.exists()
        else "`make repro` writes the report"
    )
    return f"repro: {what}, {seconds:.1f} s; {report}"


@contextmanager
def former_results_kept(repo: Repo) -> Iterator[None]:
    """Bring back the last results of a stage that does not finish in the body.

    DVC removes the outputs of a stage before it runs the stage. (`persist: true` in dvc.yaml would keep them,
    but then DVC does not restore results of earlier parameters.)
    """
    before = {stage: [out for out in stage.outs if out.exists] for stage in repo.index.stages}
    uncached = {
        out: Path(out.fs_path).read_bytes()
        for outs in before.values()
        for out in outs
        if not out.use_cache and Path(out.fs_path).is_file()
    }
    try:
        yield
    except BaseException:
        wait_for_stages()
        for outs in before.values():
            if any(out.exists for out in outs):  # it did not run, or left something that explains the failure
                continue
            for out in outs:
                if out in uncached:
                    Path(out.fs_path).write_bytes(uncached[out])
                else:
                    repo.checkout([out.fs_path], force=True, allow_missing=True)
        raise


def exit_code(failure: str) -> int:
    """The exit code in DVC's words about a failed stage; 128 + N for one that signal N ended."""
    status = re.search(r"exited with (-?\d+)$", failure)
    if status is None:
        return 1
    return int(status[1]) if int(status[1]) >= 0 else 128 - int(status[1])


if __name__ == "__main__":
    sys.exit(main())

"""What every stage does around its work: one sentence for a mistake, an exit code, the time that it took."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from dfvt.engine.imports import rare_collections
from dfvt.settings import VARIANTS, Settings, load_settings
from dfvt.terminal import escape_unencodable

DATASET_MANIFEST = Path("data/dataset/manifest.json")
CONFIGS = Path("runs/configs")
DOWNLOADS = Path(".dfvt/downloads")  # outside of what DVC removes before a stage


def run_stage(name: str, work: Callable[[Settings], None]) -> None:
    """Run the script of a stage: `work` with the settings of params.yaml. Ends the process when it fails."""
    escape_unencodable()
    options = _parser(name).parse_args()
    _run(name, lambda: work(load_settings()), debug=options.debug)


def run_variant_stage(name: str, work: Callable[[Settings, str], None]) -> None:
    """Run the script of a stage that works on one variant, named on the command line."""
    escape_unencodable()
    parser = _parser(name)
    parser.add_argument("variant", choices=VARIANTS)
    options = parser.parse_args()
    _run(f"{name}@{options.variant}", lambda: work(load_settings(), options.variant), debug=options.debug)


def _parser(name: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"python -m pipelines.{name}", description=f"The DVC stage {name}.")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _run(name: str, work: Callable[[], None], *, debug: bool) -> None:
    started = time.monotonic()
    if debug:  # it also tells where the warnings about pictures come from
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("dfvt").setLevel(logging.DEBUG)
    signal.signal(signal.SIGTERM, _end_in_order)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
    # OpenMP's threads soon wait asleep: busy waiting makes a training ten times slower when another program
    # wants a core. Set before torch is imported; Ray's workers inherit it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        with rare_collections():
            work()
    except (ValueError, FileNotFoundError) as error:
        _fail(f"{name}: {error}", 2, error if debug else None)
    except OSError as error:
        if isinstance(error, ConnectionError) and error.errno is None:  # a sentence about MLflow's server
            _fail(f"{name}: {error}", 1, error if debug else None)
        if error.filename is None:
            raise
        _fail(f"{name}: {explain_os_error(error)}", 2, error if debug else None)
    except RuntimeError as error:
        _fail(f"{name}: {error}", 1, error if debug else None)
    except KeyboardInterrupt:
        _fail(f"{name}: stopped; the same command carries on", 130, None)
    print(f"{name}: done in {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def explain_os_error(error: OSError) -> str:
    """Say which file the system refuses, why, and what to do."""
    sentence = f"{error.filename}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{sentence}: free some space there"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
        home = Path(os.environ.get("HOME", "/"))
        if Path(os.fsdecode(error.filename)).is_relative_to(home):
            return f"{sentence}: set HOME to a folder that you can write to (it is {home})"
        return f"{sentence}: give yourself access to it"
    return sentence


def _end_in_order(number: int, _: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the end of the first
    sys.exit(128 + number)


def _fail(sentence: str, exit_code: int, error: Exception | None) -> None:
    if error is not None:
        raise error
    print(sentence, file=sys.stderr, flush=True)
    sys.exit(exit_code)


def replace_folder(partial: Path, final: Path) -> None:
    """Give a finished folder its final name, in place of an earlier one."""
    with suppress(FileNotFoundError):
        shutil.rmtree(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)

"""The console script `dfvt`: parse, call the package, one sentence and exit code 2 for a mistake."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from signal import SIGINT
from typing import TYPE_CHECKING, Any

from dfvt import __version__
from dfvt.cli_cluster import add_cluster_commands
from dfvt.cli_compare import add_compare_commands
from dfvt.cli_data import add_data_commands
from dfvt.cli_predict import add_export_arguments, add_predict_arguments
from dfvt.engine.console import quiet_libraries
from dfvt.engine.imports import rare_collections
from dfvt.terminal import escape_unencodable

if TYPE_CHECKING:  # commands import what they need
    import torch
    from mmcv import Config

    from dfvt.engine.evaluate import CocoEvaluation

Commands = _SubParsersAction  # what `add_subparsers` makes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."""
    escape_unencodable()
    # OpenMP's threads soon wait asleep, see pipelines.stage. Commands import torch, which reads it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    quiet_libraries()
    options = _parse(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, FileNotFoundError) as error:
        return _fail(error, 2, debug=options.debug)
    except OSError as error:
        if isinstance(error, ConnectionError) and error.errno is None:  # a sentence about MLflow's server
            return _fail(error, 1, debug=options.debug)
        if error.filename is None:
            raise
        return _fail(ValueError(f"{error.filename}: {error.strerror}"), 2, debug=options.debug)
    except RuntimeError as error:
        return _fail(error, 1, debug=options.debug)
    except KeyboardInterrupt as interrupt:
        print(": ".join(["dfvt: interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str] | None) -> Namespace:
    """Parse the arguments; images may be named before and after options, which argparse does not take."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "words") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.words = [*options.words, *rest]
    if getattr(options, "cfg_options", None):
        options.cfg_options = _values_of(options.cfg_options, options.parser)
    return options


def _values_of(texts: Sequence[str], parser: ArgumentParser) -> dict[str, Any]:
    """Read the texts `KEY=VALUE` of `--cfg-options` as mmcv does; a mistake ends the process with a sentence.

    They are read when all other arguments are right: help and wrong usage do not wait for mmcv, which imports
    torch.

    Args:
        texts: what stands after the option.
        parser: that of the command.

    Returns:
        The value of each dotted key.
    """
    for text in texts:
        if "=" not in text:
            parser.error(f"--cfg-options {text}: it needs a value, KEY=VALUE")
    from mmcv import DictAction

    values = Namespace()
    try:
        DictAction(["--cfg-options"], "values")(parser, values, texts)
    except AssertionError as error:  # unbalanced brackets
        parser.error(f"--cfg-options {' '.join(texts)}: {error}")
    return values.values


def _fail(error: Exception, exit_code: int, *, debug: bool) -> int:
    if debug:
        raise error
    print(f"dfvt: {error}", file=sys.stderr)
    return exit_code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="dfvt", description="Train, test and measure DFvT detectors.")
    parser.add_argument("--version", action="version", version=f"dfvt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_test(commands)
    _add_predict(commands)
    _add_export(commands)
    add_cluster_commands(commands)
    _add_profile(commands)
    add_data_commands(commands)
    add_compare_commands(commands)
    return parser


def _add_train(commands: Commands) -> None:
    train = _config_command(
        commands,
        "train",
        "Train a detector, or carry on with a training that was interrupted.",
        "where state and checkpoint go; default: work_dirs/<config's name>",
    )
    train.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="PATH",
        help="there must be a training to carry on with, in --work-dir or in PATH",
    )
    train.add_argument(
        "--seed", type=int, default=0, help="of weights, order and augmentation of the images; default: 0"
    )
    train.set_defaults(run=_train)


def _add_test(commands: Commands) -> None:
    test = _config_command(
        commands,
        "test",
        "Evaluate a checkpoint on the config's test images.",
        "as --out DIR/<config's name>.json",
    )
    test.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a file of weights, ours or mmdet's"
    )
    test.add_argument(
        "--eval",
        nargs="+",
        choices=("bbox", "segm"),
        metavar="TYPE",
        help="bbox, segm or, by default, what the detector has",
    )
    test.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="write the numbers here, COCO's result records to FILE.bbox.json and FILE.segm.json",
    )
    test.set_defaults(run=_test)


def _add_predict(commands: Commands) -> None:
    predict = _config_command(commands, "predict", "Find the objects on images.", "as --out DIR")
    add_predict_arguments(predict)


def _add_export(commands: Commands) -> None:
    summary = "Write a detector's networks as programs of torch.export."
    add_export_arguments(_config_command(commands, "export", summary, "as --out DIR"))


def _add_profile(commands: Commands) -> None:
    profile = _config_command(
        commands,
        "profile",
        "Count a detector's parameters and FLOPs.",
        "write the JSON to DIR/profile.json",
    )
    profile.add_argument(
        "--shape",
        nargs=2,
        type=_side,
        metavar=("H", "W"),
        help="image in pixels; default: that of the config's test images",
    )
    profile.add_argument("--json", action="store_true", help="print JSON")
    profile.set_defaults(run=_profile)


def _config_command(commands: Commands, name: str, summary: str, work_dir: str) -> ArgumentParser:
    """A command about a detector's config."""
    made = commands.add_parser(name, help=summary, description=summary)
    made.add_argument("config", type=Path, metavar="CONFIG", help="an mmdet config file")
    made.add_argument(
        "--cfg-options",
        nargs="+",
        default={},
        metavar="KEY=VALUE",
        help="config keys to change, as model.backbone.drop_path_rate=0.2",
    )
    made.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="one process a GPU; 0: CPU; default: a GPU that is there",
    )
    made.add_argument("--work-dir", type=Path, metavar="DIR", help=work_dir)
    made.add_argument("--debug", action="store_true", help="show where an error comes from")
    made.set_defaults(parser=made)
    return made


def _side(text: str) -> int:
    """A side of an image in pixels, from 32 up."""
    pixels = int(text)
    if pixels < 32:
        raise ArgumentTypeError(f"{pixels} pixels are fewer than 32")
    return pixels


def _train(options: Namespace) -> int:
    from dfvt.engine.config import load_config, write_config
    from dfvt.engine.infer import choose_devices
    from dfvt.engine.launch import launch
    from dfvt.engine.signals import stop_on_signals

    cfg = load_config(options.config, options.cfg_options)
    work_dir = options.work_dir or Path("work_dirs", options.config.stem)
    state = _state_to_resume(options.resume, work_dir)
    devices = choose_devices(options.gpus)
    write_config(cfg, work_dir / f"{options.config.stem}.py")
    arguments = cfg, work_dir, options.seed, state, options.config.stem
    with stop_on_signals() as stop:
        outcome = launch(_train_in_process, devices, *arguments, stop_asked=stop)
    if isinstance(outcome, Path):
        if os.environ.get("RANK", "0") == "0":  # torchrun's other processes say the same
            print(outcome)
        return 0
    number, step = outcome
    print(f"dfvt: stopped after step {step}; the same command goes on from there", file=sys.stderr)
    return 130 if (stop.received or number) == SIGINT else 0


def _state_to_resume(resume: Path | bool, work_dir: Path) -> Path | None:
    """The state that `--resume [PATH]` asks for; None without it, which continues what `work_dir` holds."""
    from dfvt.engine.states import STATE_FILE, read_newest

    if resume is False:
        return None
    path = work_dir if resume is True else Path(resume)
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"there is no training to resume: {path} does not exist")
    found = read_newest(path, lambda damage: print(f"dfvt: {damage}", file=sys.stderr))
    if found is None:
        raise FileNotFoundError(f"there is no training to resume: {path / STATE_FILE} does not exist")
    return found[0]


def _train_in_process(
    device: torch.device, cfg: Config, work_dir: Path, seed: int, state: Path | None, name: str
) -> Path | tuple[int, int]:
    """The final checkpoint, or the signal that stopped the training and how many iterations were done."""
    from dfvt.engine.curves import CurveFiles
    from dfvt.engine.custom_modules import import_custom_modules
    from dfvt.engine.hooks import TrainingStopped
    from dfvt.engine.progress import Progress
    from dfvt.engine.signals import stop_on_signals
    from dfvt.engine.train import train

    import_custom_modules(cfg)  # this process may be a new one
    listeners = [CurveFiles(work_dir), Progress(name)]
    with stop_on_signals() as stop:
        try:
            return train(
                cfg,
                work_dir,
                seed=seed,
                device=device,
                callbacks=listeners,
                resume_from=state,
                stop_asked=stop,
            ).checkpoint
        except TrainingStopped as stopped:
            return stop.received or 0, stopped.step


def _test(options: Namespace) -> None:
    from dfvt.engine.config import load_config
    from dfvt.engine.infer import choose_devices
    from dfvt.engine.launch import launch

    cfg = load_config(options.config, options.cfg_options)
    roi_head = cfg.model.get("roi_head") or {}
    kinds = ["bbox", "segm"] if roi_head.get("mask_head") else ["bbox"]
    chosen = options.eval or kinds
    if not set(chosen) <= set(kinds):
        raise ValueError(f"config {options.config} has no mask head: choose --eval bbox")
    out = options.out or (options.work_dir and options.work_dir / f"{options.config.stem}.json")
    if out and out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)  # now, not after the images
    evaluation = launch(_test_in_process, choose_devices(options.gpus), cfg, options.checkpoint)
    if evaluation is None:  # not the first process of torchrun
        return
    numbers = {name: value for name, value in evaluation.numbers.items() if name.split("_")[0] in chosen}
    for name, value in numbers.items():
        print(f"{name:12} {value:.3f}" if value >= 0 else f"{name:12} \N{EN DASH}")
    if out:
        known = {name: value if value >= 0 else None for name, value in numbers.items()}  # COCO's −1 is null
        out.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        for iou_type in chosen:
            predictions = json.dumps(evaluation.predictions[iou_type])
            out.with_suffix(f".{iou_type}.json").write_text(predictions, encoding="utf-8")


def _test_in_process(device: torch.device, cfg: Config, checkpoint: Path) -> CocoEvaluation | None:
    from dfvt.engine.custom_modules import import_custom_modules
    from dfvt.engine.evaluate import evaluate_model
    from dfvt.engine.infer import load_detector

    import_custom_modules(cfg)  # this process may be a new one
    model, dataset = load_detector(cfg, checkpoint, device)
    return evaluate_model(model, dataset, device, num_workers=cfg.data.workers_per_gpu)


@rare_collections()
def _profile(options: Namespace) -> None:
    from dfvt.engine.config import input_shape_of, load_config
    from dfvt.engine.infer import build_bare_detector
    from dfvt.models.complexity import measure_complexity
    from dfvt.reports.complexity import complexity_table

    cfg = load_config(options.config, options.cfg_options)
    shape = tuple(options.shape) if options.shape else input_shape_of(cfg)
    size = measure_complexity(build_bare_detector(cfg), shape)
    numbers = json.dumps(asdict(size), indent=2)
    print(numbers if options.json else complexity_table(size))
    if options.work_dir:
        options.work_dir.mkdir(parents=True, exist_ok=True)
        (options.work_dir / "profile.json").write_text(numbers + "\n", encoding="utf-8")

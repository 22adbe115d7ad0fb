"""The console script `dfvt`: parse, call the package, one sentence and exit code 2 for a mistake."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dfvt import __version__
from dfvt.engine.console import quiet_libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, FileNotFoundError) as error:
        return _fail(error, 2, debug=options.debug)
    except RuntimeError as error:
        return _fail(error, 1, debug=options.debug)
    except KeyboardInterrupt:
        print("dfvt: stopped; train again with the same --work-dir to carry on", file=sys.stderr)
        return 130
    return 0


def _fail(error: Exception, exit_code: int, *, debug: bool) -> int:
    if debug:
        raise error
    print(f"dfvt: {error}", file=sys.stderr)
    return exit_code


def _parser() -> ArgumentParser:
    quiet_libraries()
    from mmcv import DictAction

    parser = ArgumentParser(prog="dfvt", description="Train, test and measure DFvT detectors.")
    parser.add_argument("--version", action="version", version=f"dfvt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.add_argument("config", type=Path, metavar="CONFIG", help="an mmdet config file")
        made.add_argument(
            "--cfg-options",
            nargs="+",
            action=DictAction,
            default={},
            metavar="KEY=VALUE",
            help="config keys to change, as model.backbone.drop_path_rate=0.2",
        )
        made.add_argument(
            "--gpus", type=int, choices=(0, 1), metavar="N", help="0: CPU; default: a GPU that is there"
        )
        made.add_argument("--debug", action="store_true", help="show where an error comes from")
        return made

    train = command("train", "Train a detector, or carry on with a training that was interrupted.")
    train.add_argument("--work-dir", type=Path, metavar="DIR", help="default: work_dirs/<config's name>")
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train)

    test = command("test", "Evaluate a checkpoint on the config's test images.")
    test.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    test.add_argument("--eval", nargs="+", choices=("bbox", "segm"), default=["bbox", "segm"], metavar="TYPE")
    test.add_argument("--out", type=Path, metavar="FILE.json", help="write the numbers here as well")
    test.set_defaults(run=_test)

    profile = command("profile", "Count a detector's parameters and FLOPs.")
    profile.add_argument("--json", action="store_true", help="print JSON")
    profile.set_defaults(run=_profile)
    return parser


def _train(options: Namespace) -> None:
    from dfvt.engine.config import load_config, write_config
    from dfvt.engine.curves import CurveFiles
    from dfvt.engine.infer import choose_device
    from dfvt.engine.progress import Progress
    from dfvt.engine.train import train

    cfg = load_config(options.config, options.cfg_options)
    work_dir = options.work_dir or Path("work_dirs", options.config.stem)
    device = choose_device("auto" if options.gpus is None else bool(options.gpus))
    write_config(cfg, work_dir / options.config.name)
    listeners = [CurveFiles(work_dir), Progress(options.config.stem)]
    result = train(cfg, work_dir, seed=options.seed, device=device, callbacks=listeners)
    print(result.checkpoint)


def _test(options: Namespace) -> None:
    from dfvt.engine.config import load_config
    from dfvt.engine.evaluate import evaluate_model
    from dfvt.engine.infer import choose_device, load_detector

    cfg = load_config(options.config, options.cfg_options)
    device = choose_device("auto" if options.gpus is None else bool(options.gpus))
    model, dataset = load_detector(cfg, options.checkpoint, device)
    evaluation = evaluate_model(model, dataset, device)
    assert evaluation is not None, "one process evaluates"
    metrics = {
        name: value for name, value in evaluation.metrics.items() if name.split("_")[0] in options.eval
    }
    for name, value in metrics.items():
        print(f"{name:12} {value:.4f}")
    if options.out:
        options.out.write_text(json.dumps(metrics, indent=2) + "\n")


def _profile(options: Namespace) -> None:
    from dfvt.engine.config import input_shape_of, load_config
    from dfvt.engine.infer import build_bare_detector
    from dfvt.models.complexity import measure_complexity

    cfg = load_config(options.config, options.cfg_options)
    size = measure_complexity(build_bare_detector(cfg), input_shape_of(cfg))
    if options.json:
        print(json.dumps(asdict(size), indent=2))
        return
    height, width = size.input_shape
    print(f"params    {size.num_params:,} (backbone {size.backbone_params:,})")
    print(f"FLOPs     {size.flops / 1e9:.2f}G multiply-adds at {height}×{width}")
    print(f"          {size.flops_with_attention / 1e9:.2f}G with the products inside attention")

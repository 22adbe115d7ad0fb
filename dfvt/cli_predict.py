"""The commands `dfvt predict` and `dfvt export`, which take a detector from a config or from MLflow."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmcv import Config

    from dfvt.engine.predict import Predictor

ADDRESSES = ("models:/", "runs:/")


def add_predict_arguments(predict: ArgumentParser) -> None:
    """What `predict` takes beside what every command about a config does."""
    _add_detector(predict, "predict", "IMAGE…", "")
    predict.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="takes predictions.json and a picture of each image",
    )
    predict.add_argument(
        "--score", type=_score, default=0.3, help="the least that an object must have; default: 0.3"
    )
    predict.add_argument(
        "--batch", type=int, default=1, help="images of one size that pass together; default: 1"
    )
    predict.add_argument("--no-pictures", action="store_true", help="write predictions.json alone")
    predict.set_defaults(run=_predict)


def add_export_arguments(command: ArgumentParser) -> None:
    """What `export` takes beside what every command about a config does."""
    _add_detector(command, "export", "[IMAGE…]", ", on which programs and detector are compared")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="takes dense.pt2, bbox_head.pt2, mask_head.pt2, export.json"
    )
    command.add_argument(
        "--shape",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of the images in pixels, multiples of 32; default: what holds landscape test images",
    )
    command.add_argument("--batch", type=int, default=1, help="images that pass together; default: 1")
    command.set_defaults(run=_export)


def _add_detector(command: ArgumentParser, name: str, images: str, purpose: str) -> None:
    """The words after CONFIG: a checkpoint, unless CONFIG is a model of MLflow's, and images."""
    command.usage = (
        f"dfvt {name} CONFIG CHECKPOINT {images} --out DIR [options]\n"
        f"       dfvt {name} MODEL {images} --out DIR [options]"
    )
    command.add_argument(
        "words",
        nargs="*",
        metavar=f"[CHECKPOINT] {images}",
        help="a file of weights, ours or mmdet's, unless CONFIG is a MODEL that MLflow keeps "
        "(models:/NAME@champion, models:/NAME/VERSION, runs:/RUN); then images"
        f"{purpose}: files, folders, or patterns such as 'photos/**/*.jpg'",
    )


def _is_model(options: Namespace) -> bool:
    return str(options.config).startswith(ADDRESSES)


def _images_of(options: Namespace) -> list[str]:
    """The words that name images: the first one is the checkpoint of a config."""
    if not _is_model(options) and not options.words:
        raise ValueError(f"no CHECKPOINT is named after the config {options.config}")
    return list(options.words if _is_model(options) else options.words[1:])


def _load(options: Namespace) -> tuple[Config, Predictor]:
    """The config and detector that are asked for."""
    from dfvt.engine.config import load_config
    from dfvt.engine.infer import choose_devices
    from dfvt.engine.predict import Predictor

    device = choose_devices(options.gpus)[0]
    with TemporaryDirectory() as folder:
        if _is_model(options):
            config, checkpoint = _fetch(str(options.config), Path(folder))
        else:
            config, checkpoint = options.config, Path(options.words[0])
        cfg = load_config(config, options.cfg_options, import_modules=not _is_model(options))
        return cfg, Predictor(cfg, checkpoint, device)


def _export(options: Namespace) -> int:
    from tqdm import tqdm

    from dfvt.data.images import find_images
    from dfvt.engine.config import largest_input_of
    from dfvt.engine.export import (
        check_export,
        describe_export,
        export_detector,
        load_programs,
        save_programs,
    )

    out = options.out or options.work_dir
    if out is None:
        raise ValueError("--out DIR is missing: it takes the programs")
    if options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    images = _images_of(options)
    paths = find_images(images) if images else []
    if paths and options.batch != 1:
        raise ValueError("images are compared one by one: leave out --batch, or the images")
    cfg, predictor = _load(options)
    height, width = options.shape or largest_input_of(cfg)
    shape = (options.batch, 3, height, width)
    programs = export_detector(predictor.model, options.batch, height, width)
    save_programs(programs, describe_export(cfg, predictor.model, predictor.classes, programs), out)
    print(f"{out}: {', '.join(f'{name}.pt2' for name in programs)} for images of {height} × {width} pixels")
    if not paths:
        return 0
    with tqdm(total=len(paths), desc="compared", unit="img", disable=not sys.stderr.isatty()) as bar:
        if not sys.stderr.isatty():
            print(f"comparing {len(paths)} images …", file=sys.stderr, flush=True)
        agreement = check_export(predictor, load_programs(out), shape, paths, bar.update)
    for path in agreement.too_large:
        print(f"dfvt: {path}: larger than {height} × {width} once resized, not compared", file=sys.stderr)
    for path in agreement.different:
        print(f"dfvt: {path}: the programs find other objects than the detector", file=sys.stderr)
    print(
        f"compared on {agreement.num_images} images with {agreement.num_objects} objects: scores differ by "
        f"{agreement.score:.1g} at most, boxes by {agreement.box:.1g} pixels, masks' IoU is "
        f"{agreement.mask_iou:.4f} at least"
    )
    if not agreement.num_images:
        raise ValueError("none of the images fits the shape: export another --shape")
    return 1 if agreement.different else 0


def _fetch(address: str, folder: Path) -> tuple[Path, Path]:
    """Config and checkpoint of a model that MLflow keeps."""
    from dfvt.engine.served import CHECKPOINT, CONFIG
    from dfvt.tracking.mlflow import tracking_uri
    from dfvt.tracking.models import fetch_model

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    detector = fetch_model(tracking_uri(Path.cwd()), address, folder)
    return detector / CONFIG, detector / CHECKPOINT


def _score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _predict(options: Namespace) -> int:
    from tqdm import tqdm

    from dfvt.data.images import find_images, read_picture
    from dfvt.engine.predict import predict_files
    from dfvt.reports.predictions import PredictionFiles, draw_prediction, picture_names, remove_pictures

    if options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    out = options.out or options.work_dir
    if out is None:
        raise ValueError("--out DIR is missing: it takes predictions.json and the pictures")
    images = _images_of(options)
    if not images:
        taken = f": {options.words[0]} was taken as CHECKPOINT" if options.words else ""
        raise ValueError(f"no image is named{taken}")
    paths = find_images(images)
    cfg, predictor = _load(options)
    out.mkdir(parents=True, exist_ok=True)
    num_replaced = remove_pictures(out / "predictions.json")
    if num_replaced:
        print(f"dfvt: {out}: the predictions of {num_replaced} images before are replaced", file=sys.stderr)
    files = PredictionFiles(predictor.classes, options.score)
    unreadable, num_objects = 0, 0
    with tqdm(total=len(paths), unit="img", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        predictions = predict_files(
            predictor,
            paths,
            batch_size=options.batch,
            num_workers=min(cfg.data.workers_per_gpu, len(paths) - 1),
            progress=bar.update,
        )
        for (path, prediction), picture in zip(predictions, picture_names(paths), strict=True):
            if isinstance(prediction, str):
                unreadable += 1
                bar.write(f"dfvt: {path}: {prediction}", file=sys.stderr)
                continue
            drawn = None if options.no_pictures else f"pictures/{picture}"
            num_objects += files.add(str(path), prediction, drawn)
            if not options.no_pictures:
                image = read_picture(path, (prediction.width, prediction.height))
                draw_prediction(
                    image, prediction, predictor.classes, options.score, out / "pictures" / picture
                )
    files.save(out / "predictions.json")
    print(f"{out}: {num_objects} objects on {len(paths) - unreadable} images")
    if unreadable:
        print(f"dfvt: {unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return 2 if unreadable else 0

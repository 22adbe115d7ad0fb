"""The commands `dfvt predict` and `dfvt export`, which take a detector from a config or from MLflow."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmcv import Config

    from dfvt.engine.export import Programs
    from dfvt.engine.predict import Predictor

ADDRESSES = ("models:/", "runs:/")
PREDICTIONS, PICTURES = "predictions.json", "pictures"  # what predict writes


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


def _folder(options: Namespace, content: str) -> Path:
    """The folder that takes the results; what is wrong with it is said before the work."""
    from dfvt.data.files import require_folder

    out: Path | None = options.out or options.work_dir
    if out is None:
        raise ValueError(f"--out DIR is missing: it takes {content}")
    require_folder(out)
    return out


def _load(options: Namespace) -> tuple[Config, Predictor]:
    """The config and detector that are asked for."""
    from dfvt.engine.config import load_config
    from dfvt.engine.custom_modules import refuse_custom_modules
    from dfvt.engine.infer import choose_devices
    from dfvt.engine.plain import load_plain_config
    from dfvt.engine.predict import Predictor

    device = choose_devices(options.gpus)[0]
    with TemporaryDirectory() as folder:
        if _is_model(options):
            config, checkpoint = _fetch(str(options.config), Path(folder))
            cfg = load_plain_config(config, options.cfg_options)  # others wrote it: it is not executed
            refuse_custom_modules(cfg, f"the config of {options.config}")
        else:
            config, checkpoint = options.config, Path(options.words[0])
            cfg = load_config(config, options.cfg_options)
        return cfg, Predictor(cfg, checkpoint, device)


def _export(options: Namespace) -> int:
    from dfvt.data.images import find_images
    from dfvt.engine.config import largest_input_of
    from dfvt.engine.export import (
        TOLERANCE,
        describe_export,
        export_detector,
        load_programs,
        output_differences,
        save_programs,
    )

    out = _folder(options, "the programs")
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
    programs = load_programs(out)
    differences = output_differences(predictor.model, programs, shape)
    wrong = [name for name, difference in differences.items() if not difference <= TOLERANCE]
    for name in wrong:
        print(
            f"dfvt: {out / name}.pt2: its outputs differ from the detector's by {differences[name]:.2g} of "
            "the largest: do not use it",
            file=sys.stderr,
        )
    if wrong:
        return 1
    print(f"compared on noise: outputs differ by {max(differences.values()):.1g} of the largest at most")
    return _compare_on_images(predictor, programs, shape, paths) if paths else 0


def _compare_on_images(
    predictor: Predictor, programs: Programs, shape: Sequence[int], paths: Sequence[Path]
) -> int:
    """Compare what detector and programs find on images; returns the exit code."""
    from tqdm import tqdm

    from dfvt.engine.export import check_export

    height, width = shape[2:]
    with tqdm(total=len(paths), desc="compared", unit="img", disable=not sys.stderr.isatty()) as bar:
        if not sys.stderr.isatty():
            print(f"comparing {len(paths)} images …", file=sys.stderr, flush=True)
        agreement = check_export(predictor, programs, shape, paths, bar.update)
    for path in agreement.too_large:
        print(f"dfvt: {path}: larger than {height} × {width} once resized, not compared", file=sys.stderr)
    for path in agreement.different:
        print(f"dfvt: {path}: the programs find other objects than the detector", file=sys.stderr)
    remedy = f"--shape {' '.join(map(str, agreement.needed))} holds all images"
    if not agreement.num_images:
        raise ValueError(f"none of the images fits the shape: {remedy}")
    if agreement.too_large:
        print(f"dfvt: {len(agreement.too_large)} images are not compared: {remedy}", file=sys.stderr)
    if not (agreement.num_objects or agreement.different):
        print(
            f"compared on {agreement.num_images} images, on which the detector finds nothing: only the "
            "outputs on noise say that the programs are right; name images with objects to compare more"
        )
        return 0
    print(
        f"compared on {agreement.num_images} images with {agreement.num_objects} objects: scores differ by "
        f"{agreement.score:.1g} at most, boxes by {agreement.box:.1g} pixels, masks' IoU is "
        f"{agreement.mask_iou:.4f} at least"
    )
    return 1 if agreement.different else 0


def _fetch(address: str, folder: Path) -> tuple[Path, Path]:
    """Config and checkpoint of a model that MLflow keeps."""
    from dfvt.engine.served import CHECKPOINT, CONFIG
    from dfvt.tracking.addresses import tracking_uri
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
    from dfvt.data.images import find_images
    from dfvt.reports.predictions import (
        earlier_pictures,
        inputs_without_pictures,
        picture_names,
        require_replaceable,
    )

    if options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    out = _folder(options, "predictions.json and the pictures")
    images = _images_of(options)
    if not images:
        taken = f": {options.words[0]} was taken as CHECKPOINT" if options.words else ""
        raise ValueError(f"no image is named{taken}")
    earlier = earlier_pictures(out / PREDICTIONS)
    found = find_images(images)
    paths = inputs_without_pictures(found, out / PICTURES, earlier or ())
    names = [] if options.no_pictures else picture_names(paths)
    require_replaceable(out / PICTURES, names, earlier or ())
    if len(paths) < len(found):
        number = len(found) - len(paths)
        print(
            f"dfvt: {number} pictures in {out / PICTURES} are left out: predict wrote them", file=sys.stderr
        )
    cfg, predictor = _load(options)
    if earlier is not None:
        print(f"dfvt: {out}: the predictions of before are replaced", file=sys.stderr)
    num_workers = min(cfg.data.workers_per_gpu, len(paths) - 1)
    return _predict_into(out, predictor, paths, names, earlier or (), num_workers, options)


def _predict_into(
    out: Path,
    predictor: Predictor,
    paths: Sequence[Path],
    names: Sequence[str],
    earlier: Sequence[str],
    num_workers: int,
    options: Namespace,
) -> int:
    """Predict and write; files have their names when all are complete. Returns the exit code."""
    from tqdm import tqdm

    from dfvt.data.images import read_picture
    from dfvt.engine.predict import predict_files
    from dfvt.reports.predictions import PredictionFiles, draw_prediction, replace_pictures

    partial = out / f".{PICTURES}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # a `predict` that was killed leaves it
    out.mkdir(parents=True, exist_ok=True)
    files = PredictionFiles(predictor.classes, options.score)
    unreadable, num_objects = 0, 0
    with tqdm(total=len(paths), unit="img", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        predictions = predict_files(
            predictor, paths, batch_size=options.batch, num_workers=num_workers, progress=bar.update
        )
        for (path, prediction), name in zip_longest(predictions, names):
            if isinstance(prediction, str):
                unreadable += 1
                bar.write(f"dfvt: {path}: {prediction}", file=sys.stderr)
                continue
            num_objects += files.add(str(path), prediction, name and f"{PICTURES}/{name}")
            if name is not None:
                image = read_picture(path, (prediction.width, prediction.height))
                draw_prediction(image, prediction, predictor.classes, options.score, partial / name)
    files.save(out / PREDICTIONS)  # first: the next `predict` then knows all pictures as its own
    replace_pictures(partial, out / PICTURES, earlier)
    print(f"{out}: {num_objects} objects on {len(paths) - unreadable} images")
    if unreadable:
        print(f"dfvt: {unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return 2 if unreadable else 0

"""The command `dfvt predict`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

ADDRESSES = ("models:/", "runs:/")


def add_predict_arguments(predict: ArgumentParser) -> None:
    """What `predict` takes beside what every command about a config does."""
    predict.usage = (
        "dfvt predict CONFIG CHECKPOINT IMAGE… --out DIR [options]\n"
        "       dfvt predict MODEL IMAGE… --out DIR [options]"
    )
    predict.add_argument(
        "words",
        nargs="+",
        metavar="[CHECKPOINT] IMAGE…",
        help="a file of weights, ours or mmdet's, unless CONFIG is a MODEL that MLflow keeps "
        "(models:/NAME@champion, models:/NAME/VERSION, runs:/RUN); then images: files, folders, or patterns "
        "such as 'photos/**/*.jpg'",
    )
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

    from dfvt.data.images import find_images, read_image
    from dfvt.engine.config import load_config
    from dfvt.engine.infer import choose_devices
    from dfvt.engine.predict import Predictor, predict_files
    from dfvt.reports.predictions import PredictionFiles, draw_prediction, picture_names, remove_pictures

    if options.batch < 1:
        raise ValueError(f"--batch {options.batch} is below 1")
    out = options.out or options.work_dir
    if out is None:
        raise ValueError("--out DIR is missing: it takes predictions.json and the pictures")
    is_model = str(options.config).startswith(ADDRESSES)
    images = options.words if is_model else options.words[1:]
    if not images:
        raise ValueError(f"no image is named after CHECKPOINT {options.words[0]}")
    paths = find_images(images)
    device = choose_devices(options.gpus)[0]
    with TemporaryDirectory() as folder:
        config, checkpoint = options.config, Path(options.words[0])
        if is_model:
            config, checkpoint = _fetch(str(config), Path(folder))
        cfg = load_config(config, options.cfg_options)
        predictor = Predictor(cfg, checkpoint, device)
    out.mkdir(parents=True, exist_ok=True)
    remove_pictures(out / "predictions.json")
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
                image = read_image(path)[..., ::-1]
                draw_prediction(
                    image, prediction, predictor.classes, options.score, out / "pictures" / picture
                )
    files.save(out / "predictions.json")
    print(f"{out}: {num_objects} objects on {len(paths) - unreadable} images")
    if unreadable:
        print(f"dfvt: {unreadable} of {len(paths)} images could not be read", file=sys.stderr)
    return 2 if unreadable else 0

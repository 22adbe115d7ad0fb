"""mmdet configs: reading them, and pointing them at a data set."""

from __future__ import annotations

import contextlib
import copy
import re
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mmcv import Config

from dfvt.data.manifest import DatasetManifest
from dfvt.engine.options import merge_options

SPLITS = ("train", "val", "test")


def load_config(path: str | Path, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Reads an mmdet config and applies `cfg_options` (dotted keys) with mmcv's meaning.

    Raises:
        FileNotFoundError: the config or one of its bases is missing.
        ValueError: it is not a valid config, or an option's key is one that nothing reads.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {path} {'is no file' if Path(path).exists() else 'does not exist'}")
    try:
        cfg = Config.fromfile(str(path), import_custom_modules=False)
    except (SyntaxError, KeyError, TypeError, NameError, ImportError, OSError) as error:
        _close_temporary_files(error)
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"config {path} needs a file that does not exist: {error}") from error
        raise ValueError(f"config {path} cannot be read: {error}") from error
    if cfg_options:
        try:
            merge_options(cfg, cfg_options)
        except ValueError as error:
            raise ValueError(f"config {path}: {error}") from error
    return cfg


@contextlib.contextmanager
def arguments_of(section: str) -> Iterator[None]:
    """Says in one sentence what a class refuses among the arguments that a config's section gives it.

    Raises:
        FileNotFoundError: the section names a file that is missing.
        ValueError: an argument is unknown, missing or of the wrong type, or weights cannot be fetched.
    """
    try:
        yield
    except FileNotFoundError as error:
        missing = re.search("No such file or directory: '(.*)'", str(error))
        if missing is None:
            raise
        raise FileNotFoundError(f"{missing[1]} does not exist, which the config's {section} names") from error
    except URLError as error:
        raise ValueError(
            f"the config's {section} names a file that cannot be fetched ({error.reason}): "
            "fetch it elsewhere and give its path"
        ) from error
    except (TypeError, KeyError, AttributeError, AssertionError) as error:
        reason = str(error.args[0]) if error.args else ""
        reason = re.sub(r"'(\S+ is not in the [^']*)'", r"\1", reason)
        if not reason.rpartition(": ")[2]:  # an assertion without words: its line says what it wants
            cause: BaseException = error
            while cause.__context__:
                cause = cause.__context__
            reason += traceback.extract_tb(cause.__traceback__)[-1].line or type(error).__name__
        raise ValueError(f"the config's {section} cannot be built: {reason}") from error


def _close_temporary_files(error: Exception) -> None:
    """Close what mmcv leaves open when it fails: collected later, the files complain on the terminal."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = frame.f_locals.get("temp_config_file")
        if file is not None:
            with contextlib.suppress(FileNotFoundError):  # its folder is gone already
                file.close()


def write_config(cfg: Config, path: Path) -> None:
    """Writes a whole config as one Python file without `_base_`; the same config gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(cfg.pretty_text, encoding="utf-8")
    partial.replace(path)


def use_dataset(cfg: Config, manifest: DatasetManifest) -> None:
    """Points data and number of classes at the data set; a relative root stays relative."""
    classes = list(manifest.classes)
    train = {"ann_file": str(manifest.train_annotations), "img_prefix": str(manifest.train_images)}
    val = {"ann_file": str(manifest.val_annotations), "img_prefix": str(manifest.val_images)}
    for split, paths in zip(SPLITS, (train, val, val), strict=True):
        cfg.data[split].update(paths, data_root=str(manifest.root), classes=classes)
    cfg.model.roi_head.bbox_head.num_classes = len(classes)
    if cfg.model.roi_head.get("mask_head"):
        cfg.model.roi_head.mask_head.num_classes = len(classes)


def override_config(
    cfg: Config,
    *,
    lr: float | None = None,
    num_epochs: int | None = None,
    batch_size: int | None = None,
    pretrained: str | None = None,
) -> None:
    """Sets those that are given; `batch_size` is the images of one process's batch."""
    if lr is not None:
        cfg.optimizer.lr = lr
    if num_epochs is not None:
        cfg.runner.max_epochs = num_epochs
    if batch_size is not None:
        cfg.data.samples_per_gpu = batch_size
    if pretrained is not None:
        cfg.model.pretrained = pretrained


def with_absolute_paths(cfg: Config, folder: Path) -> Config:
    """A copy whose paths of data and pretrained weights do not depend on the current folder."""
    cfg = copy.deepcopy(cfg)
    for split in SPLITS:
        if cfg.data[split].get("data_root") is not None:
            cfg.data[split].data_root = str(folder / cfg.data[split].data_root)
    if cfg.model.get("pretrained"):
        cfg.model.pretrained = str(folder / cfg.model.pretrained)
    if cfg.get("load_from"):
        cfg.load_from = str(folder / cfg.load_from)
    return cfg


def input_shape_of(cfg: Config) -> tuple[int, int]:
    """Height and width in pixels of a landscape test image that needs no padding (800×1280 for 1333×800).

    Raises:
        ValueError: the test pipeline has no `MultiScaleFlipAug` with one `img_scale`.
    """
    height, width, divisor = _test_scale_of(cfg)
    return height // divisor * divisor, min(width, height * 8 // 5) // divisor * divisor


def largest_input_of(cfg: Config) -> tuple[int, int]:
    """Height and width in pixels that hold every landscape test image, padded (800×1344 for 1333×800).

    Raises:
        ValueError: as `input_shape_of`.
    """
    height, width, divisor = _test_scale_of(cfg)
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _test_scale_of(cfg: Config) -> tuple[int, int, int]:
    """The short and long side that test images are scaled to fit, and the divisor of padded ones."""
    if "data" not in cfg:
        raise ValueError("the config has no section data that says how large images are: give --shape H W")
    steps = [step for step in cfg.data.test.pipeline if step.type == "MultiScaleFlipAug"]
    if len(steps) != 1 or not isinstance(steps[0].img_scale, tuple):
        raise ValueError("the config's test pipeline must have one MultiScaleFlipAug with one img_scale")
    divisors = [step.get("size_divisor") or 1 for step in steps[0].transforms if step.type == "Pad"]
    return min(steps[0].img_scale), max(steps[0].img_scale), max(divisors, default=1)

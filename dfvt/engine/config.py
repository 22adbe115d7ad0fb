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

import mmcv.utils.config
from mmcv import Config
from mmcv.utils.registry import build_from_cfg

import dfvt
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config_text import config_text
from dfvt.engine.custom_modules import import_custom_modules
from dfvt.engine.dataset_configs import dataset_configs, sources_of, tested_data

SPLITS = ("train", "val", "test")
BUILD = build_from_cfg.__name__
CONFIG_FILE = mmcv.utils.config.__file__
OWN = Path(dfvt.__file__).parent
CONSTRUCTION = re.compile(r"__init__$|<\w+>$|_?(build|make|concat)\w*$|__call__$|register_\w+$")
DATA_PATHS = ("ann_file", "img_prefix", "seg_prefix", "proposal_file")  # of a data set without data_root


def load_config(path: str | Path, cfg_options: Mapping[str, Any] | None = None) -> Config:
    """Read an mmdet config that the user names, and apply `cfg_options` (dotted keys) with mmcv's meaning.

    The file is executed, and its `custom_imports` are imported. `dfvt.engine.plain.load_plain_config` reads
    the config of a run or of a logged model, which may come from somebody else.

    Raises:
        FileNotFoundError: the config or one of its bases is missing.
        ValueError: it is not a valid config, an option's key is one that nothing reads, or a module of
            `custom_imports` cannot be imported.
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
    import_custom_modules(cfg)
    if cfg_options:
        from dfvt.engine.options import merge_options  # imports mmdet, which takes seconds

        try:
            merge_options(cfg, cfg_options)
        except ValueError as error:
            raise ValueError(f"config {path}: {error}") from error
    return cfg


@contextlib.contextmanager
def arguments_of(section: str) -> Iterator[None]:
    """Says in one sentence what a class refuses among the arguments that a config's section gives it.

    Other errors of what is called, which are mistakes of ours or of a library, stay what they are.

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
        cause = _first_cause(error)
        if not _is_about_arguments(cause):
            raise
        reason = str(error.args[0]) if error.args else ""
        reason = re.sub(r"'(\S+ is not in the [^']*)'", r"\1", reason)
        if not reason.rpartition(": ")[2]:  # an assertion without words: its line says what it wants
            reason += traceback.extract_tb(cause.__traceback__)[-1].line or type(error).__name__
        raise ValueError(f"the config's {section} cannot be built: {reason}") from error


def _first_cause(error: BaseException) -> BaseException:
    """The error that mmcv's `build_from_cfg` made others of, one for each class around it."""
    while error.__context__ and type(error) is type(error.__context__):
        error = error.__context__
    return error


def _is_about_arguments(cause: BaseException) -> bool:
    """Whether an error comes from the arguments of a call that builds, not from what the call then does.

    A missing key of a config is, and what a class refuses in its constructor or a library asserts.
    """
    frames = traceback.extract_tb(cause.__traceback__)
    calls = [place for place, frame in enumerate(frames) if frame.name == BUILD]
    within = frames[calls[-1] + 1 if calls else 2 :]  # after those of `arguments_of` and its body
    last = frames[-1]
    if last.filename == CONFIG_FILE:  # a section lacks a key
        return True
    if isinstance(cause, AssertionError):
        return OWN not in Path(last.filename).parents  # ours are about mistakes of ours
    return all(CONSTRUCTION.match(frame.name) for frame in within)


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
    partial.write_text(config_text(cfg), encoding="utf-8")
    partial.replace(path)


def use_dataset(cfg: Config, manifest: DatasetManifest) -> None:
    """Points data and number of classes at the data set; a relative root stays relative.

    Wrappers of data sets (`RepeatDataset` and others) stay around those of the training. Validation and test
    have none: what is evaluated is evaluated once.

    Raises:
        ValueError: a section is missing, or joins several data sets, as `ConcatDataset` does.
    """
    classes = list(manifest.classes)
    train = {"ann_file": str(manifest.train_annotations), "img_prefix": str(manifest.train_images)}
    val = {"ann_file": str(manifest.val_annotations), "img_prefix": str(manifest.val_images)}
    for split, paths in zip(SPLITS, (train, val, val), strict=True):
        parts = list(dataset_configs(cfg.data.get(split)))
        if not parts:
            raise ValueError(f"the config's data.{split} has no data set: give it a type and a pipeline")
        files = sources_of(parts)
        if len(files) > 1:
            raise ValueError(
                f"the config's data.{split} joins {len(files)} data sets ({', '.join(files)}), but the "
                f"project has one, that of params.yaml: leave one of them in data.{split}"
            )
        if split != "train":
            parts = parts[:1]
            cfg.data[split] = parts[0]
            (parts,) = [list(dataset_configs(cfg.data[split]))]
        for part in parts:
            part.update(paths, data_root=str(manifest.root), classes=classes)
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
        for part in dataset_configs(cfg.data.get(split)):
            keys = ("data_root",) if part.get("data_root") is not None else DATA_PATHS
            for key in keys:
                if part.get(key) is not None:
                    part[key] = _absolute(part[key], folder)
    if cfg.model.get("pretrained"):
        cfg.model.pretrained = _absolute(cfg.model.pretrained, folder)
    if cfg.get("load_from"):
        cfg.load_from = _absolute(cfg.load_from, folder)
    return cfg


def _absolute(path: Any, folder: Path) -> Any:
    """A path, or each of a list, below a folder unless it is absolute or an address (`torchvision://…`)."""
    if isinstance(path, list | tuple):
        return [_absolute(one, folder) for one in path]
    return path if "://" in path else str(folder / path)


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
    steps = [step for step in tested_data(cfg).pipeline if step.type == "MultiScaleFlipAug"]
    if len(steps) != 1 or not isinstance(steps[0].img_scale, tuple):
        raise ValueError("the config's test pipeline must have one MultiScaleFlipAug with one img_scale")
    divisors = [step.get("size_divisor") or 1 for step in steps[0].transforms if step.type == "Pad"]
    return min(steps[0].img_scale), max(steps[0].img_scale), max(divisors, default=1)

"""`--cfg-options`: mmcv's meaning, but a key that nothing would read is an error that names the nearest one.

mmcv enters whatever it is given, so that a misspelt key changes nothing and says nothing. Here a key must be
in the config already, or be one that its section is read for: an argument of the class that the section's
`type` (or a learning-rate `policy`) names, or one of `SECTIONS`. Of the sections in `WHOLE`, which the engine
reads itself, it must be one of `SECTIONS`: a variable that a config's file has made its pipelines of
(`img_scale`) is in the config, and nothing reads it any more. In a file names at the top may be the user's
own variables: those that look misspelt are told.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import mmcv.ops
from mmcv import Config, ConfigDict
from mmcv.cnn.bricks import registry as layers
from mmcv.runner import HOOKS, LrUpdaterHook
from mmcv.runner.optimizer.builder import OPTIMIZERS
from mmcv.utils import Registry
from mmcv.utils.config import DELETE_KEY
from mmdet.core.anchor.builder import PRIOR_GENERATORS
from mmdet.core.bbox.builder import BBOX_ASSIGNERS, BBOX_CODERS, BBOX_SAMPLERS
from mmdet.core.bbox.iou_calculators.builder import IOU_CALCULATORS
from mmdet.datasets import DATASETS, PIPELINES
from mmdet.models.builder import MODELS

import dfvt.models  # noqa: F401

REGISTRIES: tuple[Registry, ...] = (
    *(MODELS, DATASETS, PIPELINES, PRIOR_GENERATORS, BBOX_CODERS, BBOX_ASSIGNERS, BBOX_SAMPLERS),
    *(IOU_CALCULATORS, OPTIMIZERS, HOOKS),
    *(layers.CONV_LAYERS, layers.NORM_LAYERS, layers.ACTIVATION_LAYERS, layers.UPSAMPLE_LAYERS),
)
SECTIONS: dict[str, tuple[str, ...]] = {
    "": (
        *("model", "data", "optimizer", "optimizer_config", "lr_config", "momentum_config", "runner", "fp16"),
        *("evaluation", "checkpoint_config", "log_config", "custom_hooks", "workflow"),
        *("find_unused_parameters", "load_from", "resume_from"),
        *(
            "ema",
            "failures",
            "resized_batch",
            "sync_batchnorm",
            "compile_backbone",
            "cudnn_benchmark",
            "tf32",
        ),
        *("fast_heads", "canvases", "group_by_canvas", "normalize_on_device", "channels_last", "cuda_graphs"),
    ),
    "data": ("samples_per_gpu", "workers_per_gpu", "train", "val", "test"),
    "optimizer": ("paramwise_cfg", "constructor"),
    "optimizer.paramwise_cfg": (
        *("custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult"),
        *("dcn_offset_lr_mult", "bypass_duplicate"),
    ),
    "optimizer_config": ("grad_clip", "use_fp16", "dtype", "update_interval", "cumulative_iters"),
    "optimizer_config.grad_clip": ("max_norm", "norm_type", "error_if_nonfinite", "foreach"),
    "fp16": ("loss_scale",),
    "evaluation": ("interval", "save_best"),
    "checkpoint_config": ("interval", "by_epoch", "max_keep_ckpts"),
    "ema": ("decay",),
    "failures": ("nonfinite_losses", "unreadable_images"),
    "log_config": ("interval",),
    "runner": ("type", "max_epochs"),
    "model.train_cfg.rpn_proposal": ("nms_pre", "max_per_img", "nms", "min_bbox_size"),
    "model.train_cfg.rcnn": ("assigner", "sampler", "mask_size", "pos_weight", "debug"),
    "model.test_cfg.rpn": ("nms_pre", "max_per_img", "nms", "min_bbox_size"),
    "model.test_cfg.rcnn": ("score_thr", "nms", "max_per_img", "mask_thr_binary"),
}
WHOLE = (  # sections of which `SECTIONS` holds all that is read
    *("", "data", "optimizer_config", "fp16", "evaluation", "checkpoint_config", "ema", "failures"),
    *("log_config", "runner"),
)
RESEMBLES, NEARLY = 0.5, 0.8  # of two names' letters in common
FREE_SECTIONS = (
    "custom_keys",
    "nms",
    "meta",
)  # names of parameters, or arguments of one of several functions


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Enters options (dotted keys, list indices among them) into a config in place.

    `_delete_: True` in a section replaces the whole section, also where that is an entry of a list. A list in
    place of a tuple becomes one: YAML has none.

    Raises:
        ValueError: a key is one that nothing reads, or a list has no such entry.
    """
    before = cfg._cfg_dict
    nested = _nested(options)
    try:
        after = _merged("", nested, before)
    except ValueError as error:
        raise ValueError(f"cfg_options {dict(options)} do not fit: {error}") from error
    for key in _keys(nested):
        _require_known(key, before, after)
    object.__setattr__(cfg, "_cfg_dict", after)  # as mmcv's own `merge_from_dict` does


def _nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings; a later option counts more than an earlier one."""
    nested: dict[str, Any] = {}
    for dotted, value in options.items():
        *path, last = dotted.split(".")
        section = nested
        for part in path:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        value = _nested(value) if isinstance(value, Mapping) else copy.deepcopy(value)
        both = isinstance(section.get(last), dict) and isinstance(value, dict)
        section[last] = {**section[last], **value} if both else value
    return nested


def _merged(key: str, value: Any, before: Any) -> Any:
    """What becomes of the entry `before` of a config.

    Raises:
        ValueError: a list has no such entry, or what the value sets entries of has none.
    """
    if not isinstance(value, Mapping):
        return _with_tuples(value, before)
    value = dict(value)
    replaces = bool(value.pop(DELETE_KEY, False)) or before is None
    if not replaces and isinstance(before, list | tuple):
        entries = list(before)
        for name, item in value.items():
            if not name.isdigit() or int(name) >= len(entries):
                raise ValueError(f"{key} is a list of the entries 0 to {len(entries) - 1}, it has no {name}")
            entries[int(name)] = _merged(f"{key}.{name}", item, entries[int(name)])
        return type(before)(entries)
    if not replaces and not isinstance(before, Mapping):
        raise ValueError(f"{key} is {before!r} in the config, which has no entry {next(iter(value), '')}")
    section = ConfigDict() if replaces else ConfigDict(before)
    for name, item in value.items():
        section[name] = _merged(f"{key}.{name}" if key else name, item, section.get(name))
    return section


def _with_tuples(value: Any, before: Any) -> Any:
    """The value with tuples of numbers where the config has some, as sizes of images."""
    if not isinstance(value, list) or not isinstance(before, list | tuple):
        return value
    pairs = [before] if isinstance(before, tuple) else [one for one in before if isinstance(one, tuple)]
    if not pairs:
        return value
    if any(isinstance(item, list) for item in value):
        return [tuple(item) if isinstance(item, list) else item for item in value]
    return tuple(value)


def misspelt_names(cfg: Config) -> list[str]:
    """A sentence for each name at the top of a config that is not read and nearly one that is."""
    sentences = []
    for name in cfg.keys() - SECTIONS[""]:
        near = difflib.get_close_matches(name, SECTIONS[""], n=1, cutoff=NEARLY)
        if near:
            sentences.append(f"the config's {name} is read by nothing: is {near[0]} meant?")
    return sorted(sentences)


def _keys(options: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of the values; a section that replaces another (`_delete_`) is one value."""
    for name, value in options.items():
        if isinstance(value, Mapping) and value and DELETE_KEY not in value:
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _require_known(key: str, before: Any, after: Any) -> None:
    parts, whole = key.split("."), before
    for depth, part in enumerate(parts):
        if isinstance(before, list | tuple):  # `_merged` has checked the index
            before, after = before[int(part)], after[int(part)]
            continue
        if not isinstance(before, Mapping) or (depth and parts[depth - 1] in FREE_SECTIONS):
            return  # a section that the options bring themselves, or one whose names are the user's
        section = ".".join(parts[:depth])
        is_read = section not in WHOLE or part in SECTIONS[section]
        if part not in before or not is_read:
            known = {*(before if section not in WHOLE else ()), *_accepted(section, after)}
            if part in known and is_read:
                return
            raise ValueError(f"cfg_options: {_why_unread(key, depth, known, whole, is_there=part in before)}")
        before, after = before[part], after[part]


def _why_unread(
    key: str, depth: int, known: Iterable[str], whole: Mapping[str, Any], *, is_there: bool
) -> str:
    """What is wrong with a key, and the nearest one that is read."""
    parts = key.split(".")
    siblings = [".".join([*parts[:depth], name, *parts[depth + 1 :]]) for name in sorted(known)]
    leaves = [leaf for leaf in _leaves(whole) if leaf.partition(".")[0] in SECTIONS[""]]
    if is_there:
        unread = ".".join(parts[: depth + 1])
        made = next((leaf for leaf in leaves if leaf.rpartition(".")[2] == parts[-1]), None)
        instead = f", set {made} instead" if made else ""
        hint = ", or train.image_size of params.yaml" if made and parts[-1] == "img_scale" else ""
        return f"nothing reads {unread} of the config{instead}{hint}"
    longer = [sibling for sibling in siblings if sibling.startswith(key)]  # a word that was cut short
    near = difflib.get_close_matches(
        key, longer or [*siblings, *leaves], n=1, cutoff=0 if longer else RESEMBLES
    )
    nearest = f", the nearest is {near[0]}" if near else ""
    return f"the config has no key {key}{nearest}"


def _accepted(name: str, section: Mapping[str, Any]) -> Iterator[str]:
    """Keys that a section of the config is read for, whether or not it has them."""
    yield from SECTIONS.get(name, ())
    kind = section.get("type")
    if name == "lr_config":
        yield "policy"
        policy = str(section.get("policy", ""))
        kind = f"{policy[:1].upper()}{policy[1:]}{LrUpdaterHook.__name__}"
    if isinstance(kind, str):
        yield "type"
        found = next((registry.get(kind) for registry in REGISTRIES if registry.get(kind)), None)
        yield from _arguments(found or getattr(mmcv.ops, kind, None))


def _arguments(kind: Any) -> Iterator[str]:
    """Names of the arguments of a class, those that it hands on to its parents included."""
    for parent in inspect.getmro(kind) if inspect.isclass(kind) else ():
        if "__init__" not in vars(parent):
            continue
        _, *parameters = inspect.signature(vars(parent)["__init__"]).parameters.values()  # without self
        yield from (p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return


def _leaves(section: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values of a config, those in its lists included."""
    if isinstance(section, Mapping):
        items: Iterable[tuple[Any, Any]] = section.items()
    elif isinstance(section, list) and any(isinstance(item, Mapping) for item in section):
        items = enumerate(section)
    else:
        yield prefix
        return
    for name, value in items:
        yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))

"""What of a sweep could not run, or would compare nothing: said before the first trial starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from dfvt.cluster.spaces import scheduler_of, searcher_of, segment_of
from dfvt.cluster.spec import RANGES, SweepSpec, active_part, examples, examples_of_models
from dfvt.cluster.trial_config import config_of_trial, max_epochs
from dfvt.data.manifest import DatasetManifest

INTERVAL = "evaluation.interval"
# Areas in pixels, from and below, of the objects that a metric of COCO is about.
AREAS = {"_s": (0.0, 32.0**2), "_m": (32.0**2, 96.0**2), "_l": (96.0**2, 1e10)}


def require_possible(
    path: Path, spec: SweepSpec, configs: Mapping[str, str], dataset: DatasetManifest, *, begun: bool = False
) -> None:
    """Refuse a spec of which some values make no detector, or whose trials could not be compared.

    Args:
        path: the spec's file, which the error names.
        spec: the spec.
        configs: for each variant the config as text.
        dataset: what the trials are validated on.
        begun: whether the sweep goes on. Then a scheduler that stops no trial is no reason to refuse it.

    Raises:
        ValueError: in one sentence that begins with `path`.
    """
    from dfvt.engine.support import check_supported

    try:
        num_epochs = max_epochs(spec, configs)
        for assignment in (*examples(spec), *examples_of_intervals(spec)):
            cfg = config_of_trial(spec, configs, assignment)
            check_supported(cfg)
            require_number(spec.metric, cfg)
            require_search(spec, cfg, num_epochs, begun=begun)
        require_objects(spec.metric, dataset)
        require_detectors(spec, configs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def examples_of_intervals(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """Yield an assignment for each value that the space has for the interval between validations."""
    domain = spec.space.get(INTERVAL)
    if domain is None:
        return
    values = domain.values[:1] if domain.kind in RANGES else domain.values
    first = {key: other.values[0] for key, other in spec.space.items()}
    met = {key: wanted[0] for key, wanted in domain.when.items()}
    for value in values:
        yield active_part(spec.space, {"variant": spec.variants[0], **first, **met, INTERVAL: value})


def require_detectors(spec: SweepSpec, configs: Mapping[str, str]) -> None:
    """Refuse values of the model that no detector can be built with.

    Raises:
        ValueError: in one sentence that names the value.
    """
    examples_to_build = list(examples_of_models(spec))
    if not examples_to_build:
        return
    from dfvt.engine.infer import build_bare_detector

    built: set[str] = set()
    for named, assignment in examples_to_build:
        cfg = config_of_trial(spec, configs, assignment)
        if (model := repr(cfg.model)) in built:  # it differs in what is no part of the model
            continue
        built.add(model)
        try:
            build_bare_detector(cfg)
        except ValueError as error:
            raise ValueError(f"with {named} {error}") from error


def require_number(metric: str, cfg: Config) -> None:
    """Refuse a metric that no validation of a detector has.

    Raises:
        ValueError: the detector is never validated, or has no masks that the metric is about.
    """
    if interval_of(cfg) == 0:
        raise ValueError(
            f"{INTERVAL} is 0, so that no trial is validated and none has a {metric}: "
            f"set cfg_options.{INTERVAL} to 1 or more"
        )
    model = cfg.model
    has_masks = model.get("mask_head") or (model.get("roi_head") or {}).get("mask_head")
    if metric.startswith("segm_") and not has_masks:
        raise ValueError(f"metric {metric} is about masks, which the detector does not have: write bbox_mAP")


def require_objects(metric: str, dataset: DatasetManifest) -> None:
    """Refuse a metric of small, medium or large objects where no validation image has such an object.

    Nothing is refused where the annotations are not on this machine.

    Raises:
        ValueError: there is no such object, so that the metric is undefined for all trials.
    """
    suffix = metric[-2:]
    if suffix not in AREAS or not dataset.val_annotations_path.is_file():
        return
    from dfvt.data.coco import read_annotations

    low, high = AREAS[suffix]
    annotations = read_annotations(dataset.val_annotations_path).annotations
    if not any(low <= one.area < high for one in annotations if not one.iscrowd):
        areas = f"{low:g} to {high:g} pixels" if high < 1e10 else f"{low:g} pixels and more"
        raise ValueError(
            f"metric {metric} is about objects of {areas}, of which the validation images have none: "
            f"write {metric[:-2]}"
        )


def interval_of(cfg: Config) -> int:
    """Return after how many epochs a training is validated; 0 is never."""
    return int((cfg.get("evaluation") or {}).get("interval", 1))


def require_search(spec: SweepSpec, cfg: Config, num_epochs: int, *, begun: bool = False) -> None:
    """Refuse a search that could not begin, or would compare nothing.

    Raises:
        ValueError: options that no scheduler takes, a library that is missing, validations that come too
            seldom for a scheduler that compares the trials in the middle.
    """
    searcher_of(spec)
    scheduler_of(spec, num_epochs)
    segment, interval = segment_of(spec, num_epochs), interval_of(cfg)
    if segment and segment >= num_epochs:
        raise ValueError(
            f"scheduler {spec.scheduler} compares trials every {segment} epochs, of which a trial has "
            f"{num_epochs}, so that none takes anything over: raise num_epochs, or lower "
            "scheduler_options.perturbation_interval"
        )
    if segment and interval > segment:
        raise ValueError(
            f"scheduler {spec.scheduler} compares trials every {segment} epochs, but they are validated "
            f"every {interval}: set cfg_options.{INTERVAL} to {segment} or less, or "
            "scheduler_options.perturbation_interval to more"
        )
    if spec.scheduler != "none" and interval >= num_epochs and not begun:
        raise ValueError(
            f"scheduler {spec.scheduler} stops trials by their validations, but with {INTERVAL} {interval} "
            f"a trial of {num_epochs} epochs is validated at its end alone, so that none is stopped: set "
            f"cfg_options.{INTERVAL} to less, or write scheduler: none"
        )

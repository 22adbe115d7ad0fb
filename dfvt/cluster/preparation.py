"""A sweep before it begins: its spec beside the configs and the data set, and the plan of its trials."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mmcv import Config

from dfvt.cluster.records import DATASET_MANIFEST, LINEAGE, require_same_spec
from dfvt.cluster.spaces import scheduler_of, searcher_of, segment_of
from dfvt.cluster.spec import (
    DRAWN,
    SweepSpec,
    draw_trials,
    examples,
    examples_of_models,
    load_spec,
    num_draws,
)
from dfvt.cluster.trainable import Sweep
from dfvt.cluster.trial_config import config_of_trial
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config_text import config_text, read_config_text
from dfvt.settings import Settings, load_settings
from dfvt.tracking.lineage import collect_lineage
from dfvt.tracking.mlflow import tracking_uri
from dfvt.tracking.origin import collect_origin
from dfvt.tracking.store import Store


def prepare_sweep(path: Path, project: Path, home: Path | None = None) -> Sweep:
    """Reads a spec, and checks it against the configs of the project in `project` and its data set.

    Data set, weights, sweeps and `mlflow.db` lie in `home`: in the project, unless a cluster's nodes have
    its code alone.

    Raises:
        FileNotFoundError: the spec, a config or the data set is missing.
        ValueError: the spec is wrong, names a key that no config has, or a value that makes no detector.
    """
    from dfvt.engine.evaluate import METRIC_NAMES

    spec, settings = load_spec(path), load_settings(project / "params.yaml")
    if spec.metric not in METRIC_NAMES:
        raise ValueError(f"{path}: metric {spec.metric} is none of {', '.join(METRIC_NAMES)}")
    settings = settings.model_copy(
        update={"profile": spec.profile or settings.profile, "configs": spec.configs or settings.configs}
    )
    train = settings.train.model_copy(update={"image_size": spec.image_size or settings.train.image_size})
    settings = settings.model_copy(update={"train": train})
    home = home or project
    dataset = dataset_of(path, spec, settings, project, home)
    configs: dict[str, str] = {
        variant: config_of_variant(variant, dataset, settings, project, home) for variant in spec.variants
    }
    require_possible(path, spec, configs)
    lineage = collect_lineage(
        project, variant="", profile=settings.profile, data_hash=dataset.data_hash, config_hash=""
    ) | json.loads(os.environ.get(LINEAGE, "{}"))
    return Sweep(
        spec=spec,
        home=home,
        configs=configs,
        lineage=lineage,
        store=Store(tracking_uri(home)),
        tracking_required=settings.tracking.required,
        artifact_root=home / "mlartifacts",
        experiment=settings.tracking.experiment,
        dataset=dataset,
        origin=collect_origin(project),
    )


def dataset_of(path: Path, spec: SweepSpec, settings: Settings, project: Path, home: Path) -> DatasetManifest:
    """The data set that the trials train on, where it lies.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another profile than the spec in `path` or the settings ask for.
    """
    manifest = DatasetManifest.load(home / DATASET_MANIFEST)
    root = (spec.data_root and project / spec.data_root) or home / manifest.root
    if manifest.name != settings.profile:
        raise ValueError(
            f"{path}: profile is {settings.profile}, but the data set in {DATASET_MANIFEST.parent} is of "
            f"{manifest.name}: set profile in params.yaml and run `dvc repro fetch_data`"
        )
    return manifest.model_copy(update={"root": root.absolute()})


def config_of_variant(
    variant: str, dataset: DatasetManifest, settings: Settings, project: Path, home: Path
) -> str:
    """A variant's config with the data set, and with the pretrained weights if there are any.

    Raises:
        FileNotFoundError, ValueError: as `load_config`.
    """
    from dfvt.engine.config import load_config, use_dataset, with_absolute_paths
    from dfvt.engine.image_size import set_image_size

    cfg = load_config(project / settings.config_path(variant))
    use_dataset(cfg, dataset)
    if settings.train.image_size:
        set_image_size(cfg, settings.train.image_size)
    weights = home / "weights" / variant / "backbone.pth"
    if settings.use_pretrained and weights.is_file():
        cfg.model.pretrained = str(weights)
    return config_text(with_absolute_paths(cfg, project))


def require_possible(path: Path, spec: SweepSpec, configs: Mapping[str, str]) -> None:
    """Refuses a spec of which some values make no detector, or a search that could not begin.

    Raises:
        ValueError: in one sentence that begins with `path`.
    """
    from dfvt.engine.infer import build_bare_detector

    try:
        for named, assignment in examples_of_models(spec):
            cfg = config_of_trial(spec, configs, assignment)
            try:
                build_bare_detector(cfg)
            except ValueError as error:
                raise ValueError(f"with {named} {error}") from error
        num_epochs = max_epochs(spec, configs)
        for assignment in examples(spec):
            require_search(spec, config_of_trial(spec, configs, assignment), num_epochs)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def require_search(spec: SweepSpec, cfg: Config, num_epochs: int) -> None:
    """Refuses a search that could not begin, or would compare nothing.

    Raises:
        ValueError: options that no scheduler takes, a library that is missing, validations that come too
            seldom for a scheduler that compares the trials in the middle.
    """
    searcher_of(spec)
    scheduler_of(spec, num_epochs)
    segment, interval = segment_of(spec, num_epochs), cfg.evaluation.get("interval", 1)
    if segment and segment >= num_epochs:
        raise ValueError(
            f"scheduler {spec.scheduler} compares trials every {segment} epochs, of which a trial has "
            f"{num_epochs}, so that none takes anything over: raise num_epochs, or lower "
            "scheduler_options.perturbation_interval"
        )
    if segment and not 0 < interval <= segment:
        validated = f"every {interval}" if interval else "at their end alone"
        raise ValueError(
            f"scheduler {spec.scheduler} compares trials every {segment} epochs, but they are validated "
            f"{validated}: set cfg_options.evaluation.interval to {segment} or less, or "
            "scheduler_options.perturbation_interval to more"
        )


def plan_lines(sweep: Sweep) -> list[str]:
    """The trials that a sweep would run, and the hours that they would take, as lines of text.

    Raises:
        ValueError: another one of that name was begun.
    """
    spec = sweep.spec
    require_same_spec(spec, sweep.mirror)
    if spec.algorithm in DRAWN:
        trials = draw_trials(spec)
        lines = [
            f"{number:4}  " + "  ".join(f"{key}={value}" for key, value in trial.items())
            for number, trial in enumerate(trials, 1)
        ]
    else:
        trials = [{"variant": spec.variants[0]}] * spec.num_samples
        lines = [f"{spec.num_samples} trials that {spec.algorithm} will choose"]
    num_alike = num_draws(spec) - len(trials)
    if num_alike > 0:
        lines.append(f"{num_alike} of {num_draws(spec)} draws are like another one, and not repeated")
    if spec.images_per_second is None:
        return [*lines, "images_per_second of one worker in the spec would tell how long they take"]
    longest = max_epochs(spec, sweep.configs)
    images = sum(int(str(trial.get("num_epochs") or longest)) for trial in trials)
    hours = images * sweep.dataset.num_train_images / spec.images_per_second / 3600
    return [
        *lines,
        f"{len(trials)} trials, at most {hours:.1f} GPU-hours at {spec.images_per_second:g} images/s",
    ]


def max_epochs(spec: SweepSpec, configs: Mapping[str, str]) -> int:
    """The most epochs that a trial can have; `configs` are those of the variants, as text."""
    searched = spec.space.get("num_epochs")
    if searched:
        return max(int(value) for value in searched.values)  # type: ignore[arg-type]  # checked with the keys
    parsed = (read_config_text(text) for text in configs.values())
    return max(spec.num_epochs or cfg.runner.max_epochs for cfg in parsed)

"""A sweep before it begins: its spec beside params.yaml, the configs and the data set."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from dfvt.cluster.checks import require_possible
from dfvt.cluster.records import DATASET_MANIFEST, LINEAGE, Begun, begun_with, mirror_of
from dfvt.cluster.spec import SweepSpec, load_spec
from dfvt.cluster.trainable import Sweep
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.config_text import config_text
from dfvt.settings import Settings, TrainSettings, TrialDefaults, load_settings
from dfvt.tracking.addresses import artifact_root, tracking_uri
from dfvt.tracking.lineage import collect_lineage
from dfvt.tracking.origin import collect_origin, keeps_changes
from dfvt.tracking.store import Store

Say = Callable[[str], None]


def to_terminal(line: str) -> None:
    """Print a line about a sweep where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)


def prepare_sweep(path: Path, project: Path, home: Path | None = None, say: Say = to_terminal) -> Sweep:
    """Read a spec, and check it against the configs of the project in `project` and its data set.

    What the spec does not set is taken from the section `train` of `params.yaml`; a sweep that was begun
    keeps to the values that it began with. Data set, weights, sweeps and `mlflow.db` lie in `home`: in the
    project, unless a cluster's nodes have its code alone.

    Raises:
        FileNotFoundError: the spec, a config or the data set is missing.
        ValueError: the spec is wrong, names a key that no config has, a value that makes no detector, or a
            metric that no trial would have.
    """
    spec, settings = load_spec(path), load_settings(project / "params.yaml")
    settings = settings.model_copy(
        update={"profile": spec.profile or settings.profile, "configs": spec.configs or settings.configs}
    )
    home = home or project
    dataset = dataset_of(path, spec, settings, project, home)
    begun = begun_with(mirror_of(spec, home))
    if begun and (others := differing_values(spec, settings.train, begun)):
        say(
            f"sweep {spec.name}: goes on with the values that it began with, although params.yaml has others "
            f"now: {', '.join(others)}"
        )
    defaults = begun.defaults if begun else defaults_of(spec.variants, settings.train)
    if "seed" not in spec.model_fields_set:
        spec = spec.model_copy(update={"seed": begun.seed if begun else settings.train.seed})
        spec.model_fields_set.discard("seed")  # the plan says that it is not from the spec
    say(f"sweep {spec.name}: checks the spec, the configs and the data set")
    require_metric(path, spec)
    configs: dict[str, str] = {
        variant: config_of_variant(
            variant, dataset, settings, project, home, spec, defaults.get(variant, TrialDefaults())
        )
        for variant in spec.variants
    }
    require_possible(path, spec, configs, dataset, begun=bool(begun))
    lineage = collect_lineage(
        project, variant="", profile=settings.profile, data_hash=dataset.data_hash, config_hash=""
    ) | json.loads(os.environ.get(LINEAGE, "{}"))
    store = Store(tracking_uri(home))
    return Sweep(
        spec=spec,
        home=home,
        configs=configs,
        lineage=lineage,
        store=store,
        tracking_required=settings.tracking.required,
        artifact_root=artifact_root(home),
        experiment=settings.tracking.experiment,
        dataset=dataset,
        origin=collect_origin(
            project, with_diff=keeps_changes(settings.tracking.upload_changes, store, home)
        ),
        defaults=defaults,
    )


def require_metric(path: Path, spec: SweepSpec) -> None:
    """Refuse a metric that is none of COCO's.

    Raises:
        ValueError: in one sentence that begins with `path`.
    """
    from dfvt.engine.evaluate import METRIC_NAMES

    if spec.metric not in METRIC_NAMES:
        raise ValueError(f"{path}: metric {spec.metric} is none of {', '.join(METRIC_NAMES)}")


def defaults_of(variants: Iterable[str], train: TrainSettings) -> dict[str, TrialDefaults]:
    """Return for each variant what `params.yaml` trains it with."""
    names = set(TrialDefaults.model_fields)
    return {
        variant: TrialDefaults(**train.for_variant(variant).model_dump(include=names)) for variant in variants
    }


def differing_values(spec: SweepSpec, train: TrainSettings, begun: Begun) -> list[str]:
    """Return the keys of `params.yaml` whose values a sweep had not when it was begun and that it uses."""
    fixed = spec.model_fields_set | set(spec.space)
    names: dict[str, None] = {}
    for variant, values in defaults_of(spec.variants, train).items():
        before = begun.defaults.get(variant, TrialDefaults())
        for name in ("num_epochs", "batch_size", "lr", "image_size"):
            if name not in fixed and getattr(values, name) != getattr(before, name):
                names[f"train.{name}"] = None
        for key in {**values.cfg_options, **before.cfg_options}:
            own = key in spec.cfg_options or key in spec.space
            if not own and values.cfg_options.get(key) != before.cfg_options.get(key):
                names[f"train.cfg_options.{key}"] = None
    if train.seed != begun.seed and "seed" not in fixed:
        names["train.seed"] = None
    return list(names)


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
    variant: str,
    dataset: DatasetManifest,
    settings: Settings,
    project: Path,
    home: Path,
    spec: SweepSpec,
    defaults: TrialDefaults,
) -> str:
    """Return a variant's config with the data set, the pretrained weights if there are any, and `defaults`.

    Raises:
        FileNotFoundError, ValueError: as `load_config`; or `defaults` name a key that the config lacks.
    """
    from dfvt.engine.config import load_config, override_config, use_dataset, with_absolute_paths
    from dfvt.engine.image_size import set_image_size
    from dfvt.engine.options import merge_options

    cfg = load_config(project / settings.config_path(variant))
    use_dataset(cfg, dataset)
    if image_size := spec.image_size or defaults.image_size:
        set_image_size(cfg, image_size)
    weights = home / "weights" / variant / "backbone.pth"
    if settings.use_pretrained and weights.is_file():
        cfg.model.pretrained = str(weights)
    try:
        merge_options(cfg, defaults.cfg_options)
    except ValueError as error:
        raise ValueError(f"params.yaml: train.{error}") from error
    override_config(cfg, lr=defaults.lr, num_epochs=defaults.num_epochs, batch_size=defaults.batch_size)
    return config_text(with_absolute_paths(cfg, project), formatted=False)

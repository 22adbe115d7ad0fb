"""What can be known before any stage runs: whether the project, its data and its settings are usable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dfvt.settings import VARIANTS, Settings, TrainSettings, Variant

# What stages and libraries write. tests/pipeline/test_inputs.py compares them with the outputs of dvc.yaml.
WRITTEN = (
    *("data/dataset", "data/validation.json", "data/validation.html", "weights", "runs", "metrics"),
    *("evaluations", "reports", "mlartifacts", "mlflow.db", ".dfvt", ".dvc", ".git", ".venv"),
)


def check_inputs(settings: Settings, targets: Sequence[str] = ()) -> None:
    """Check everything that DVC or a stage would refuse later: data, configs and addresses.

    Args:
        settings: of params.yaml.
        targets: stages that run with what they need; none for all.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: something else is wrong. Both messages are one sentence.
    """
    from dfvt.tracking.lineage import git_lineage

    git_lineage(Path.cwd())  # raises when git refuses to read the repository
    check_data_root(settings.data.root)
    for variant in VARIANTS:
        settings.config_path(variant)
    check_training_options(settings, Path("dvc.lock"), variants_of(targets))
    if os.environ.get("MLFLOW_TRACKING_URI") and settings.tracking.required:
        from dfvt.tracking.addresses import tracking_uri
        from dfvt.tracking.reachable import require_reachable

        require_reachable(tracking_uri(Path.cwd()))
    if os.environ.get("RAY_ADDRESS"):
        from dfvt.cluster.session import require_answer

        require_answer(os.environ["RAY_ADDRESS"])


def check_data_root(root: Path) -> None:
    """Check the folder of the data set, which DVC reads whole before it runs a stage.

    Raises:
        FileNotFoundError: the folder is missing, or contains a link to a file that is missing.
        ValueError: a stage writes to the folder, or the folder contains something that DVC does not read.
    """
    if not root.is_dir():
        home = " (`~` is not replaced here: write the whole path)" if str(root).startswith("~") else ""
        raise FileNotFoundError(
            f"data.root {root} is not a directory{home}: set it to the folder of a data set in COCO layout."
        )
    place, project = root.resolve(), Path.cwd().resolve()
    for name in WRITTEN:
        written = project / name
        if place == written or place in written.parents or written in place.parents:
            relation = "contains" if place in written.parents else "is in" if place != written else "is"
            raise ValueError(
                f"data.root {root} {relation} {name}, which the experiment writes: "
                "move the data set to a folder of its own, such as data/source, and set data.root to it."
            )
    _check_entries(root)


def _check_entries(root: Path) -> None:
    folders = [root]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.name == ".dvcignore":
                    raise ValueError(
                        f"data.root {root} contains the DVC project {path.parent}: "
                        "set data.root to the folder of the data set in it."
                    )
                elif entry.is_file(follow_symlinks=False) or path.is_file() or path.is_dir():
                    continue
                elif entry.is_symlink() and not path.exists():
                    raise FileNotFoundError(
                        f"{path} is a link to {path.readlink()}, which does not exist: "
                        "correct the link, or remove it."
                    )
                else:
                    raise ValueError(
                        f"{path} is neither a file nor a folder: remove it from data.root {root}."
                    )


def variants_of(targets: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants that are trained for these stages."""
    if not targets or "report" in targets:
        return VARIANTS
    return tuple(variant for variant in VARIANTS if any(target.endswith(f"@{variant}") for target in targets))


def check_training_options(settings: Settings, lock: Path, variants: Sequence[Variant] = VARIANTS) -> None:
    """Check `train.cfg_options` against the configs, before DVC removes the results of the last training.

    That takes seconds, for mmdet is imported. So options are skipped that a training has already used,
    which `dvc.lock` notes.

    Raises:
        ValueError: a key of cfg_options is not a key of the config, or a value is not allowed.
    """
    trained = _trained_options(lock)
    pending = [
        variant
        for variant in variants
        if (options := settings.train.for_variant(variant).cfg_options)
        and trained.get(variant) != (settings.config_path(variant).as_posix(), dict(options))
    ]
    if not pending:
        return
    from dfvt.engine.console import quiet_libraries

    quiet_libraries()
    for variant in pending:
        check_training_config(settings, variant, settings.config_path(variant))


def check_training_config(settings: Settings, variant: str, config: Path) -> None:
    """Check that one detector's config with its options is one that the training accepts.

    Args:
        settings: of params.yaml.
        variant: the detector.
        config: the config file before the options.

    Raises:
        ValueError: in one sentence, what is wrong.
    """
    from dfvt.engine.config import load_config, override_config
    from dfvt.engine.support import check_supported

    values = settings.train.for_variant(variant)
    try:
        cfg = load_config(config, values.cfg_options)
        override_config(cfg, lr=values.lr, num_epochs=values.num_epochs, batch_size=values.batch_size)
        check_supported(cfg)
    except ValueError as error:
        raise ValueError(f"train@{variant}: {error}") from error


def _trained_options(lock: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Config path and cfg_options of each variant's last finished training, as far as dvc.lock has them."""
    if not lock.is_file():
        return {}
    stages = (yaml.load(lock.read_bytes(), Loader=yaml.CSafeLoader) or {}).get("stages") or {}
    trained: dict[str, tuple[str, dict[str, Any]]] = {}
    for variant in VARIANTS:
        try:
            params = stages[f"train@{variant}"]["params"]["params.yaml"]
            profiled = stages["profile"]["params"]["params.yaml"]
            train = {
                "cfg_options": params["train.cfg_options"],
                "variants": {variant: params[f"train.variants.{variant}"]},
            }
            options = TrainSettings.model_validate(train).for_variant(variant).cfg_options
            config = Settings(profile=profiled["profile"], configs=profiled["configs"]).config_path(variant)
        except (
            KeyError,
            TypeError,
            ValidationError,
            ValueError,
        ):  # of an earlier version, or a conflict in git
            continue
        trained[variant] = config.as_posix(), dict(options)
    return trained

"""The config of a trial: its variant's, with what the spec sets and what was drawn for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmcv import Config
from pydantic import JsonValue

from dfvt.cluster.spec import IMAGE_SIZE, TRAIN_KEYS, SweepSpec
from dfvt.engine.config_text import read_config_text


def searched_part(assignment: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Those of a trial's values that are a config's own keys."""
    return {
        key: value for key, value in assignment.items() if key not in (*TRAIN_KEYS, IMAGE_SIZE, "variant")
    }


def settings_of_trial(spec: SweepSpec, assignment: Mapping[str, JsonValue]) -> dict[str, Any]:
    """Return the values of `TRAIN_KEYS` that the assignment or else the spec sets, None for the others."""
    return {key: assignment.get(key, getattr(spec, key)) for key in TRAIN_KEYS}


def config_of_trial(
    spec: SweepSpec, configs: Mapping[str, str], assignment: Mapping[str, JsonValue]
) -> Config:
    """Return the whole config of a trial.

    Args:
        spec: its values replace those of the config.
        configs: for each variant the config as text, with the values of `params.yaml`.
        assignment: the trial's own values, which replace those of the spec.

    Raises:
        ValueError: the spec or the assignment names a key that the config does not have.
    """
    from dfvt.engine.config import override_config
    from dfvt.engine.image_size import set_image_size
    from dfvt.engine.options import merge_options

    cfg = read_config_text(configs[str(assignment["variant"])])
    if assignment.get(IMAGE_SIZE):
        set_image_size(cfg, assignment[IMAGE_SIZE])  # type: ignore[arg-type]  # checked with the spec
    try:
        merge_options(cfg, {**spec.cfg_options, **searched_part(assignment)})
    except ValueError as error:
        # of one of the two mappings that were merged, and it names the key
        raise ValueError(str(error).removeprefix("cfg_options: ")) from error
    own = settings_of_trial(spec, assignment)
    override_config(cfg, lr=own["lr"], num_epochs=own["num_epochs"], batch_size=own["batch_size"])
    return cfg


def max_epochs(spec: SweepSpec, configs: Mapping[str, str]) -> int:
    """Return the most epochs that a trial can have; `configs` are those of the variants, as text."""
    key = "num_epochs" if spec.num_epochs or "num_epochs" in spec.space else "runner.max_epochs"
    if key in spec.space:
        return max(int(value) for value in spec.space[key].values)  # type: ignore[arg-type]  # checked
    return max(config_of_trial(spec, configs, {"variant": variant}).runner.max_epochs for variant in configs)

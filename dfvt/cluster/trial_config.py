"""The config of a trial: its variant's, with what the spec sets and what was drawn for it."""

from __future__ import annotations

from collections.abc import Mapping

from mmcv import Config
from pydantic import JsonValue

from dfvt.cluster.spec import IMAGE_SIZE, TRAIN_KEYS, SweepSpec
from dfvt.engine.config_text import read_config_text


def searched_part(assignment: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Those of a trial's values that are a config's own keys."""
    return {
        key: value for key, value in assignment.items() if key not in (*TRAIN_KEYS, IMAGE_SIZE, "variant")
    }


def config_of_trial(
    spec: SweepSpec, configs: Mapping[str, str], assignment: Mapping[str, JsonValue]
) -> Config:
    """The config of a trial, but for what `TRAIN_KEYS` set; `configs` are those of the variants, as text.

    Raises:
        ValueError: the spec or the assignment names a key that the config does not have.
    """
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
    return cfg

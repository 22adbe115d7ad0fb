"""Stage profile: each detector's whole config, its parameters and FLOPs."""

import json
from dataclasses import asdict
from pathlib import Path

from dfvt.engine.console import quiet_libraries
from dfvt.settings import VARIANTS, Settings
from pipelines.stage import CONFIGS, DATASET_MANIFEST, run_stage

METRICS = Path("metrics/profile.json")


def main(settings: Settings) -> None:
    quiet_libraries()
    from dfvt.data.manifest import DatasetManifest
    from dfvt.engine.config import input_shape_of, load_config, use_dataset, write_config
    from dfvt.engine.image_size import set_image_size
    from dfvt.engine.infer import build_bare_detector
    from dfvt.engine.loaders import require_color_type
    from dfvt.models.complexity import measure_complexity

    manifest = DatasetManifest.load(DATASET_MANIFEST)
    sizes = {}
    for variant in VARIANTS:
        cfg = load_config(settings.config_path(variant))
        require_color_type(cfg, settings.validation.color_type)
        use_dataset(cfg, manifest)
        if image_size := settings.train.for_variant(variant).image_size:
            set_image_size(cfg, image_size)
        write_config(cfg, CONFIGS / f"{variant}.py")
        # A mistake in a training's options is an error here, before DVC removes the last training's results.
        load_config(CONFIGS / f"{variant}.py", settings.train.for_variant(variant).cfg_options)
        sizes[variant] = asdict(measure_complexity(build_bare_detector(cfg), input_shape_of(cfg)))
    METRICS.parent.mkdir(exist_ok=True)
    METRICS.write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_stage("profile", main)

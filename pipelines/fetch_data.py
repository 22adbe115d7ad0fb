"""Stage fetch_data: generate the shapes, or find or fetch the data set, and describe it in data/dataset."""

import sys
from functools import partial

from dfvt.data.coco import describe_dataset
from dfvt.settings import Settings
from pipelines.stage import DATASET_MANIFEST, DOWNLOADS, run_stage

SHAPES = DATASET_MANIFEST.parent / "shapes"


def main(settings: Settings) -> None:
    data = settings.data
    generated = settings.profile == "mini"
    if generated:
        from dfvt.data.shapes import generate_shapes

        generate_shapes(SHAPES, **data.shapes.model_dump())
    else:
        if settings.profile == "coco2017" and not (data.root / data.train_annotations).is_file():
            from dfvt.data.coco2017 import ARCHIVES, Archive, provide_coco2017

            own = [Archive(one.path.as_posix(), one.size, one.md5) for one in data.archives or ()]
            say = partial(print, "fetch_data:", file=sys.stderr, flush=True)
            provide_coco2017(
                data.root,
                data.base_url,
                DOWNLOADS,
                archives=own or ARCHIVES,
                keep_archives=data.keep_archives,
                say=say,
            )
    layout = type(data)() if generated else data
    manifest = describe_dataset(
        settings.profile,
        SHAPES if generated else data.root,
        train_annotations=layout.train_annotations,
        train_images=layout.train_images,
        val_annotations=layout.val_annotations,
        val_images=layout.val_images,
        generated=generated,
    )
    manifest.save(DATASET_MANIFEST)


if __name__ == "__main__":
    run_stage("fetch_data", main)

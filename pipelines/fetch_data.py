"""Stage fetch_data: generate the shapes or find the data set, and describe it in data/dataset."""

from dfvt.data.coco import describe_dataset
from dfvt.settings import Settings
from pipelines.stage import DATASET_MANIFEST, run_stage

SHAPES = DATASET_MANIFEST.parent / "shapes"


def main(settings: Settings) -> None:
    data = settings.data
    generated = settings.profile == "mini"
    if generated:
        from dfvt.data.shapes import generate_shapes

        generate_shapes(SHAPES, **data.shapes.model_dump())
    else:
        if settings.profile == "coco2017" and not (data.root / data.train_annotations).is_file():
            raise FileNotFoundError(
                f"{data.root / data.train_annotations} is missing, and downloading COCO from {data.base_url} "
                "is not built in yet: unpack COCO 2017 into a folder and set data.root to it."
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

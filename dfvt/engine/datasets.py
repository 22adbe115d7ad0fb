"""mmdet data sets whose labels follow the config's classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from json import JSONDecodeError
from typing import Any

from mmcv import ConfigDict
from mmcv.image import rescale_size
from mmdet.datasets import CocoDataset, build_dataset
from mmdet.datasets.pipelines import MultiScaleFlipAug

from dfvt.data.coco import ids_not_evaluated
from dfvt.data.packed import PackedList
from dfvt.engine.console import without_chatter
from dfvt.engine.dataset_configs import INNER, sources_of


def build_coco_dataset(cfg: ConfigDict, *, test_mode: bool) -> Any:
    """An mmdet data set in which label i is class i of the config.

    mmdet numbers labels in the order in which the annotation file lists its categories, whatever the order of
    `classes`: two files of one data set could give the same label to different classes.

    Raises:
        ValueError: the annotation file is damaged or lacks a class; or a test data set has ids that COCO's
            evaluation cannot hold, or an image of which nothing is left at the size of the test images.
    """
    try:
        with without_chatter():
            dataset = build_dataset(cfg, {"test_mode": test_mode})
    except TypeError as error:
        damage = error.__context__  # mmcv makes another error of it, and fails to
        if isinstance(damage, JSONDecodeError):
            raise ValueError(
                f"annotations {', '.join(sources_of(cfg))} are not valid JSON: {damage}"
            ) from damage
        raise
    for part in coco_parts(dataset):
        number_labels_by_class(part)
        if test_mode:
            make_evaluable(part)
            require_resizable(part)
        else:
            share_annotations(part)
    return dataset


def build_evaluated_dataset(cfg: ConfigDict, section: str) -> Any:
    """As `build_coco_dataset`, for what COCO's evaluation compares with: one `CocoDataset`.

    Raises:
        ValueError: `section` of the config wraps it, or several.
    """
    if not isinstance(cfg, dict) or any(isinstance(cfg.get(key), list | dict) for key in INNER):
        kind = cfg.get("type") if isinstance(cfg, dict) else "list of data sets"
        raise ValueError(f"the config's {section} is a {kind}: COCO's evaluation needs one data set there")
    dataset = build_coco_dataset(cfg, test_mode=True)
    if not isinstance(dataset, CocoDataset):
        raise ValueError(
            f"the config's {section} is a {type(dataset).__name__}, not a CocoDataset of one file"
        )
    return dataset


def coco_parts(dataset: Any) -> Iterator[CocoDataset]:
    """The data set itself, or those that mmdet's wrappers (repeat, concatenate, balance, mix) hold."""
    if isinstance(dataset, CocoDataset):
        yield dataset
    else:
        for part in getattr(dataset, "datasets", [getattr(dataset, "dataset", None)]):
            if part is not None:
                yield from coco_parts(part)


def number_labels_by_class(dataset: CocoDataset) -> None:
    """Makes label i class i of the config.

    Raises:
        ValueError: the annotation file lacks a class.
    """
    ids = {category["name"]: category["id"] for category in dataset.coco.dataset["categories"]}
    missing = [name for name in dataset.CLASSES if name not in ids]
    if missing:
        raise ValueError(
            f"{dataset.ann_file} has no category {missing[0]!r}: set data.train.classes, "
            "data.val.classes and data.test.classes to its categories"
        )
    dataset.cat_ids = [ids[name] for name in dataset.CLASSES]
    dataset.cat2label = {cat_id: label for label, cat_id in enumerate(dataset.cat_ids)}


def make_evaluable(dataset: CocoDataset) -> None:
    """Number annotations anew if COCO's evaluation would be wrong with their ids, which nobody else reads.

    Raises:
        ValueError: the ids of images or categories are too large for COCO's evaluation.
    """
    coco = dataset.coco
    wrong = next(ids_not_evaluated(coco.imgs, (), coco.cats), None)
    if wrong is not None:
        raise ValueError(
            f"{dataset.ann_file} has the id of {wrong}, which COCO's evaluation cannot hold: "
            "number images and categories from 1"
        )
    if 0 in coco.anns or any(ids_not_evaluated((), coco.anns, ())):
        for number, annotation in enumerate(coco.dataset["annotations"], 1):
            annotation["id"] = number
        with without_chatter():
            coco.createIndex()


def require_resizable(dataset: CocoDataset) -> None:
    """Refuse images so narrow that scaled to the size of the test images they are 0 pixels wide or high.

    OpenCV cannot resize such an image. It would end the first validation, after an epoch of training.

    Raises:
        ValueError: the data set has such an image.
    """
    steps = [step for step in dataset.pipeline.transforms if isinstance(step, MultiScaleFlipAug)]
    scales = [scale for step in steps if step.scale_key == "scale" for scale in step.img_scale]
    for image in dataset.data_infos:
        size = image["width"], image["height"]
        for scale in scales:
            if not min(rescale_size(size, tuple(scale))):
                raise ValueError(
                    f"{dataset.ann_file}: the image {image['file_name']} has {size[0]}×{size[1]} pixels; "
                    f"scaled to fit into {max(scale)}×{min(scale)}, one of its sides is 0 pixels: remove the "
                    "image, or set a larger image_size"
                )


def require_num_classes(model: ConfigDict, classes: Sequence[str], section: str) -> None:
    """Compares the classes of a detector's heads with those of a data set.

    Raises:
        ValueError: they are not as many.
    """
    heads = model.get("roi_head") or {}
    for name in ("bbox_head", "mask_head"):
        head = heads.get(name)
        for part in head if isinstance(head, list) else [head]:
            number = (part or {}).get("num_classes", len(classes))
            if number != len(classes):
                some = ", ".join([*classes[:3], *["…"] * (len(classes) > 3)])
                raise ValueError(
                    f"model.roi_head.{name}.num_classes is {number}, {section} has {len(classes)} classes "
                    f"({some}): make them agree"
                )


def share_annotations(dataset: CocoDataset) -> None:
    """Packs what a training reads of the annotations, and forgets the rest: COCO's index is gigabytes."""
    annotations = PackedList(
        dataset.coco.load_anns(dataset.coco.get_ann_ids(img_ids=[info["id"]])) for info in dataset.data_infos
    )
    dataset.data_infos = PackedList(dataset.data_infos)
    dataset.get_ann_info = partial(packed_ann_info, dataset, annotations)
    dataset.coco = None


def packed_ann_info(dataset: CocoDataset, annotations: PackedList, index: int) -> dict[str, Any]:
    """`CocoDataset.get_ann_info` without the index of COCO."""
    return dataset._parse_ann_info(dataset.data_infos[index], annotations[index])

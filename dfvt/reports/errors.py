"""What a detector's errors are, what each kind of them costs, and which classes it takes for each other."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO

IouType = Literal["bbox", "segm"]
Kind = Literal["classification", "localisation", "both", "duplicate", "background", "missed"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm")
KINDS: tuple[Kind, ...] = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU from which an object is found, and below which nothing was meant
RECALLS = np.linspace(0, 1, 101)
NO_OBJECT, NOT_FOUND = "(background)", "(missed)"  # in the place of a class


@dataclass(frozen=True)
class Detection:
    """One prediction, judged at an IoU of 0.5.

    Attributes:
        image_id, category_id, score: as predicted.
        kind: of its error; None where it found an object.
        target: the object (image, index) that it found, or meant as its error is understood; None without.
        target_category: that object's class.
    """

    image_id: int
    category_id: int
    score: float
    kind: Kind | None
    target: tuple[int, int] | None = None
    target_category: int | None = None


@dataclass
class Judgement:
    """All detections, and for each class the objects that nobody found.

    Attributes:
        num_objects: of each class.
        missed: objects (image, index) that were not found, with their class.
        ap: mean over the classes that have objects, at an IoU of 0.5.
    """

    detections: list[Detection] = field(default_factory=list)
    num_objects: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    missed: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def ap(self) -> float:
        hits = ((one.category_id, one.score, one.kind is None) for one in self.detections)
        return mean_ap(hits, self.num_objects)


def mean_ap(hits: Iterable[tuple[int, float, bool]], num_objects: Mapping[int, int]) -> float:
    """COCO's AP at one IoU of (class, score, right) triples, the mean over classes with objects, else NaN."""
    of_class: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for category_id, score, right in hits:
        of_class[category_id].append((score, right))
    values = []
    for category_id, number in num_objects.items():
        if number <= 0:
            continue
        found = sorted(of_class[category_id], key=lambda hit: -hit[0])
        if not found:
            values.append(0.0)
            continue
        num_right = np.cumsum([hit for _, hit in found])
        precision = np.maximum.accumulate((num_right / np.arange(1, len(found) + 1))[::-1])[::-1]
        places = np.searchsorted(num_right / number, RECALLS, side="left")
        values.append(float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean()))
    return float(np.mean(values)) if values else float("nan")


def judge(truth: COCO, predictions: Sequence[Mapping[str, Any]], iou_type: IouType) -> Judgement:
    """Finds out of each prediction in COCO's result format whether it is right, and what is wrong with it.

    The kinds of errors are those of TIDE (Bolya et al., ECCV 2020). Predictions on crowd regions count
    neither way, as in COCO's evaluation.
    """
    judgement = Judgement()
    of_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for prediction in predictions:
        of_image[prediction["image_id"]].append(prediction)
    for image_id in truth.getImgIds():
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=[image_id]))
        objects = [one for one in annotations if not one.get("iscrowd")]
        crowds = [one for one in annotations if one.get("iscrowd")]
        found = sorted(of_image[image_id], key=lambda one: -one["score"])
        for one in objects:
            judgement.num_objects[one["category_id"]] += 1
        judge_image(truth, image_id, objects, crowds, found, iou_type, judgement)
    return judgement


def judge_image(
    truth: COCO,
    image_id: int,
    objects: Sequence[Mapping[str, Any]],
    crowds: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    judgement: Judgement,
) -> None:
    """Adds the judgement of one image; `found` are its predictions, the surest first."""
    classes = np.array([one["category_id"] for one in objects], dtype=np.int64)
    overlaps = overlaps_of(truth, found, objects, iou_type, crowd=False)
    on_crowds = overlaps_of(truth, found, crowds, iou_type, crowd=True)
    taken = np.zeros(len(objects), dtype=bool)
    wrong = []
    for row, prediction in enumerate(found):
        same = classes == prediction["category_id"]
        free = np.where(same & ~taken, overlaps[row], -1.0)
        if len(free) and free.max() >= FOREGROUND:
            place = int(free.argmax())
            taken[place] = True
            category_id = prediction["category_id"]
            judgement.detections.append(
                Detection(image_id, category_id, prediction["score"], None, (image_id, place), category_id)
            )
            continue
        crowded = [
            column for column, crowd in enumerate(crowds) if crowd["category_id"] == prediction["category_id"]
        ]
        if not crowded or on_crowds[row, crowded].max() < FOREGROUND:
            wrong.append((row, prediction))
    for row, prediction in wrong:
        kind, target = kind_of(overlaps[row], classes == prediction["category_id"])
        judgement.detections.append(
            Detection(
                image_id,
                prediction["category_id"],
                prediction["score"],
                kind,
                None if target is None else (image_id, target),
                None if target is None else int(classes[target]),
            )
        )
    for missed in np.flatnonzero(~taken):
        judgement.missed[image_id, int(missed)] = int(classes[missed])


def kind_of(overlaps: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[Kind, int | None]:
    """The kind of a wrong prediction's error and the object that it meant; arguments (num_objects,)."""
    alike, others = np.where(same, overlaps, -1.0), np.where(same, -1.0, overlaps)
    best_alike, best_other = alike.max(initial=-1.0), others.max(initial=-1.0)
    if BACKGROUND <= best_alike < FOREGROUND:
        return "localisation", int(alike.argmax())
    if best_other >= FOREGROUND:
        return "classification", int(others.argmax())
    if best_alike >= FOREGROUND:
        return "duplicate", int(alike.argmax())
    if max(best_alike, best_other) < BACKGROUND:
        return "background", None
    return "both", int(others.argmax())


def overlaps_of(
    truth: COCO,
    found: Sequence[Mapping[str, Any]],
    objects: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    crowd: bool,
) -> NDArray[np.float64]:
    """Intersections over unions (num_found, num_objects); over predictions' areas, for crowd regions."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    if iou_type == "bbox":
        left, right = [one["bbox"] for one in found], [one["bbox"] for one in objects]
    else:
        left, right = [one["segmentation"] for one in found], [truth.annToRLE(dict(one)) for one in objects]
    return np.asarray(rle.iou(left, right, [crowd] * len(objects)))


def costs_of(judgement: Judgement) -> dict[Kind, tuple[int, float]]:
    """For each kind how many errors there are, and what AP at 0.5 would gain without them, in its fraction.

    Predictions of the wrong class or place are put right where nothing found their object yet, the surest of
    those that meant it; other errors are left out, and missed objects that no prediction meant are not asked.
    """
    before = judgement.ap
    meant = {one.target for one in judgement.detections if one.kind in ("classification", "localisation")}
    missed = {place: class_ for place, class_ in judgement.missed.items() if place not in meant}
    costs: dict[Kind, tuple[int, float]] = {}
    for kind in KINDS:
        if kind == "missed":
            number = len(missed)
            asked = dict(judgement.num_objects)
            for class_ in missed.values():
                asked[class_] -= 1
            hits = ((one.category_id, one.score, one.kind is None) for one in judgement.detections)
            after = mean_ap(hits, asked)
        else:
            number = sum(one.kind == kind for one in judgement.detections)
            after = mean_ap(put_right(judgement, kind), judgement.num_objects)
        costs[kind] = number, after - before
    return costs


def put_right(judgement: Judgement, kind: Kind) -> list[tuple[int, float, bool]]:
    """Detections (class, score, right) without the errors of a kind."""
    hits, given = [], set()
    for one in sorted(judgement.detections, key=lambda one: -one.score):
        if one.kind != kind:
            hits.append((one.category_id, one.score, one.kind is None))
        elif kind in ("classification", "localisation"):
            assert one.target is not None and one.target_category is not None
            if one.target in judgement.missed and one.target not in given:
                given.add(one.target)
                hits.append((one.target_category, one.score, True))
    return hits


def told_from_markers(name: str) -> str:
    """Return a class name that is neither `NO_OBJECT` nor `NOT_FOUND`.

    A class that is named as one of them, in any number of brackets, gets one more pair: no two names become
    the same, and all other names stay as they are.
    """
    bare = name
    while bare.startswith("(") and bare.endswith(")"):
        if bare in (NO_OBJECT, NOT_FOUND):
            return f"({name})"
        bare = bare[1:-1]
    return name


def confusions_of(judgement: Judgement, names: Mapping[int, str], score_threshold: float) -> pd.DataFrame:
    """Which class objects were taken for, by predictions of a score: columns actual, predicted, number.

    An object that was found counts as that; one that was not, as the class of the surest prediction that
    meant it, or as missed. What meant no object was background.
    """
    names = {category_id: told_from_markers(name) for category_id, name in names.items()}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    answered: set[tuple[int, int]] = set()
    for one in sorted(judgement.detections, key=lambda one: (one.kind is not None, -one.score)):
        if one.score < score_threshold:
            continue
        predicted = names[one.category_id]
        if one.kind is None or (one.kind == "classification" and one.target not in answered):
            assert one.target is not None and one.target_category is not None
            answered.add(one.target)
            counts[names[one.target_category], predicted] += 1
        else:
            counts[NO_OBJECT, predicted] += 1
    for category_id, number in judgement.num_objects.items():
        actual = names[category_id]
        found = sum(counted for (name, _), counted in counts.items() if name == actual)
        if number > found:
            counts[actual, NOT_FOUND] = number - found
    rows = [(actual, predicted, number) for (actual, predicted), number in sorted(counts.items())]
    return pd.DataFrame(rows, columns=["actual", "predicted", "number"])


def order_images(judgement: Judgement, score_threshold: float) -> list[int]:
    """Images with objects, those on which a detector did best first: by the F1 of predictions of a score.

    Of equal ones those with more objects come first.
    """
    right, wrong, objects = (defaultdict[int, int](int) for _ in range(3))
    for image_id, _ in judgement.missed:
        objects[image_id] += 1
    for one in judgement.detections:
        objects[one.image_id] += one.kind is None
        if one.score >= score_threshold:
            (wrong if one.kind else right)[one.image_id] += 1

    def key(image_id: int) -> tuple[float, int, int]:
        hits = right[image_id]
        return -2 * hits / (hits + wrong[image_id] + objects[image_id]), -objects[image_id], image_id

    return sorted((image_id for image_id, number in objects.items() if number), key=key)


def write_errors(
    truth: COCO,
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
    folder: Path,
    score_threshold: float,
) -> list[int]:
    """Write `errors.csv` and `confusion.csv` to a folder.

    Args:
        truth: the annotations.
        predictions: COCO result records by IoU type, `bbox` and, of a detector with masks, `segm`.
        folder: takes the two files.
        score_threshold: of the predictions that the confusions and the order of the images are of.

    Returns:
        The images in the order of `order_images`, by their boxes.
    """
    names = {category["id"]: category["name"] for category in truth.dataset["categories"]}
    rows = []
    for iou_type in IOU_TYPES:
        if iou_type not in predictions:
            continue
        judgement = judge(truth, predictions[iou_type], iou_type)
        rows += [
            {"iou_type": iou_type, "error": kind, "number": number, "AP50_cost": cost}
            for kind, (number, cost) in costs_of(judgement).items()
        ]
        if iou_type == "bbox":
            ordered = order_images(judgement, score_threshold)
            confusions = confusions_of(judgement, names, score_threshold)
            write_table(confusions, folder / "confusion.csv")
    write_table(pd.DataFrame(rows), folder / "errors.csv")
    return ordered


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV that reads back equal whatever its texts are; undefined numbers are empty."""
    text = table.to_csv(index=False, float_format="%.6f")
    if "\r" in text:  # Python does not quote a carriage return, which readers take for the end of a line
        text = table.to_csv(index=False, float_format="%.6f", quoting=csv.QUOTE_NONNUMERIC)
    path.write_bytes(text.encode())

"""The report shows what the stages measured, or says in one sentence which stage has to run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from dfvt.data.manifest import DatasetManifest
from dfvt.reports.curves import DPI, LOSSES, plot_learning_curves, plot_per_class_ap, plot_precision_recall
from dfvt.reports.gallery import draw_gallery, draw_instances, draw_overview
from dfvt.reports.published import PUBLISHED
from dfvt.reports.results import AP_KEYS, FIGURES, write_results

VARIANTS = ("tiny", "small", "base")
HEIGHT, WIDTH = 32, 40
EMPTY_IMAGE_ID = 5


def encode(bitmap: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def manifest(name: str, *, generated: bool) -> DatasetManifest:
    return DatasetManifest(
        name=name,
        generated=generated,
        root=Path("data"),
        train_annotations=Path("train.json"),
        train_images=Path("train"),
        val_annotations=Path("val.json"),
        val_images=Path("val"),
        classes=("disc", "bar"),
        data_hash="0123456789abcdef" * 4,
        num_train_images=1400,
        num_val_images=100,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the stages leave behind, with numbers that are easy to find again."""
    sizes = {}
    for index, variant in enumerate(VARIANTS):
        run, evaluation = tmp_path / "runs" / variant, tmp_path / "evaluations" / variant
        run.mkdir(parents=True)
        evaluation.mkdir(parents=True)
        curve = {"step": range(10, 60, 10), "epoch": 1, "acc": 90.0, "lr": 1e-4, "images_per_second": 9.5}
        pd.DataFrame(curve | dict.fromkeys(LOSSES, 0.5 + index)).to_csv(run / "curve.csv", index=False)
        val = {"step": [25, 50], "epoch": [1, 2], "bbox_mAP": [-1, 0.2], "segm_mAP": [0.1, 0.2]}
        pd.DataFrame(val).to_csv(run / "val.csv", index=False)
        tags = {"git.commit": "c0ffee" * 7, "git.dirty": "true", "config.hash": "feed" * 16}
        (run / "run.json").write_text(
            json.dumps({"mlflow_run_id": f"run-of-{variant}", "tracking_uri": "sqlite:///m.db", "tags": tags})
        )
        ap = {"class": ["disc", "bar"], "bbox_AP": [0.5, -1], "segm_AP": [0.4, 0.3]}
        pd.DataFrame(ap).to_csv(evaluation / "per_class.csv", index=False)
        curves = {"iou_type": ["bbox", "bbox", "segm"], "recall": [0, 1, 0], "precision": [1, 0.1, -1]}
        pd.DataFrame(curves).to_csv(evaluation / "precision_recall.csv", index=False)
        sizes[variant] = {
            "num_params": 4_321_987 + index,
            "backbone_params": 3_680_067,
            "flops": 1_230_000_000,
            "input_shape": [128, 160],
        }
        keys = [key for keys in AP_KEYS.values() for key in keys]
        metrics = dict.fromkeys(keys, 0.25) | {"bbox_mAP": 0.4567 + index / 10, "segm_mAP_l": -1.0}
        write_json(tmp_path / f"metrics/evaluate_{variant}.json", metrics)
    write_json(tmp_path / "metrics/profile.json", sizes)
    for name in FIGURES:
        (tmp_path / "reports/figures").mkdir(parents=True, exist_ok=True)
        (tmp_path / "reports/figures" / name).write_bytes(b"")
    return tmp_path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five black images in COCO layout; each but the last has a disc, which is also what is predicted."""
    bitmap = cv2.circle(np.zeros((HEIGHT, WIDTH), np.uint8), (20, 16), 8, 1, -1)
    images, annotations, predictions = [], [], []
    for image_id in range(1, EMPTY_IMAGE_ID + 1):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH})
        cv2.imwrite(str(tmp_path / f"{image_id}.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
        if image_id == EMPTY_IMAGE_ID:
            continue
        item = {"image_id": image_id, "category_id": 7, "segmentation": encode(bitmap)}
        place = {"id": image_id, "bbox": [12, 8, 17, 17], "area": int(bitmap.sum()), "iscrowd": 0}
        annotations.append(item | place)
        predictions.append(item | {"score": 0.9})
    categories = [{"id": 7, "name": "disc"}, {"id": 3, "name": "bar"}]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    write_json(tmp_path / "val.json", dataset)
    write_json(tmp_path / "predictions.segm.json", predictions)
    return tmp_path


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def read_png(path: Path) -> np.ndarray:
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    image = cv2.imread(str(path))
    assert image is not None
    return image


def results_of(project: Path, name: str = "coco2017", *, generated: bool = False) -> str:
    path = write_results(
        project,
        title="Our detectors",
        profile=name,
        dataset=manifest(name, generated=generated),
        variants=VARIANTS,
    )
    assert path == project / "reports/results.md"
    return path.read_text(encoding="utf-8")


def test_results_stand_beside_the_published_ones(project: Path) -> None:
    text = results_of(project)
    assert "| DFvT-T | 45.7 | 34.8 | 25.0 | 32.6 |" in text
    assert "| DFvT-S | 55.7 | 39.2 | 25.0 | 36.3 |" in text
    assert "| DFvT-B | 65.7 | 43.4 | 25.0 | 39.0 |" in text
    size = (
        "| DFvT-B | 4,321,989 | 3,680,067 | 58M | 57,392,840 | 128×160 | 1.23G | 242G | 235.94G (236.70G) |"
    )
    assert size in text
    assert "percent" in text


def test_results_say_where_they_come_from(project: Path) -> None:
    text = results_of(project)
    assert text.startswith("# Our detectors\n")
    assert "1,400 training and 100 validation images, hash `0123456789ab`" in text
    row = "| DFvT-S | [config.py](../runs/small/config.py) | `feedfeedfeed` | `c0ffeec0ffee` with changes |"
    assert f"{row} `run-of-small` |" in text
    for name in FIGURES:
        assert f"](figures/{name})" in text


def test_results_on_generated_data_say_first_that_they_are_not_comparable(project: Path) -> None:
    _, first, *_ = results_of(project, "mini", generated=True).split("\n\n")
    assert "Not comparable" in first
    assert "generated data" in first
    assert "narrow heads" in first


def test_results_on_another_data_set_say_first_that_they_are_not_comparable(project: Path) -> None:
    _, first, *_ = results_of(project, "custom").split("\n\n")
    assert "Not comparable" in first
    assert "another data set" in first


def test_results_on_coco_are_comparable(project: Path) -> None:
    assert "Not comparable" not in results_of(project)


def test_an_undefined_ap_is_a_dash(project: Path) -> None:
    text = results_of(project)
    assert "| DFvT-T | mask | 25.0 | 25.0 | 25.0 | 25.0 | 25.0 | \N{EN DASH} |" in text
    assert "-100" not in text


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("metrics/profile.json", "profile"),
        ("metrics/evaluate_small.json", "evaluate@small"),
        ("runs/base/run.json", "train@base"),
        ("reports/figures/predictions.png", "report"),
    ],
)
def test_a_missing_input_is_named_with_its_stage(project: Path, file: str, stage: str) -> None:
    (project / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file}.*`dvc repro {stage}`"):
        results_of(project)
    assert not (project / "reports/results.md").exists()


@pytest.mark.parametrize(
    ("file", "content", "stage"),
    [
        ("metrics/profile.json", '{"tiny": {', "profile"),
        ("metrics/profile.json", "{}", "profile"),
        ("metrics/profile.json", '{"tiny": {"num_params": -3}}', "profile"),
        ("metrics/evaluate_tiny.json", '{"bbox_mAP": 0.5}', "evaluate@tiny"),
        ("metrics/evaluate_tiny.json", '{"bbox_mAP": 45.6}', "evaluate@tiny"),
        ("metrics/evaluate_tiny.json", '{"bbox_mAP": NaN}', "evaluate@tiny"),
        ("runs/tiny/run.json", "[]", "train@tiny"),
    ],
)
def test_a_malformed_input_is_one_sentence(project: Path, file: str, content: str, stage: str) -> None:
    (project / file).write_text(content)
    with pytest.raises(ValueError, match=f"{file}.*`dvc repro -f {stage}`") as caught:
        results_of(project)
    assert "\n" not in str(caught.value)


def test_learning_curves_are_a_picture(project: Path) -> None:
    plot_learning_curves(project / "runs", VARIANTS, project / "learning.png")
    assert read_png(project / "learning.png").shape == (6 * DPI, 12 * DPI, 3)


def test_precision_recall_is_a_picture(project: Path) -> None:
    plot_precision_recall(project / "evaluations", VARIANTS, project / "pr.png")
    assert read_png(project / "pr.png").shape == (4.8 * DPI, 9 * DPI, 3)


def test_ap_per_class_grows_with_the_classes(project: Path) -> None:
    plot_per_class_ap(project / "evaluations", VARIANTS, project / "few.png")
    for variant in VARIANTS:
        table = pd.DataFrame({"class": [f"class {i}" for i in range(20)], "bbox_AP": 0.5, "segm_AP": 0.5})
        table.to_csv(project / "evaluations" / variant / "per_class.csv", index=False)
    plot_per_class_ap(project / "evaluations", VARIANTS, project / "many.png")
    few, many = read_png(project / "few.png"), read_png(project / "many.png")
    assert few.shape[1] == many.shape[1] == 10 * DPI
    assert many.shape[0] > 2 * few.shape[0]


def test_a_variant_keeps_its_colour_alone_or_with_others(project: Path) -> None:
    blue = (0xB2, 0x72, 0x00)  # as OpenCV orders it
    for variants, count in (["tiny"], True), (VARIANTS, True), (["small", "base"], False):
        plot_learning_curves(project / "runs", variants, project / "curves.png")
        assert (read_png(project / "curves.png") == blue).all(axis=2).any() == count


def test_the_same_curves_are_the_same_file(project: Path) -> None:
    for name in ("a.png", "b.png"):
        plot_learning_curves(project / "runs", VARIANTS, project / name)
    assert (project / "a.png").read_bytes() == (project / "b.png").read_bytes()


def test_drawing_figures_leaves_the_process_as_it_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def style() -> dict[str, Any]:  # asking for the backend would choose one
        return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}

    before = style()
    monkeypatch.setitem(
        sys.modules, "matplotlib.pyplot", None
    )  # which holds the backend; to import it fails now
    plot_precision_recall(project / "evaluations", VARIANTS, project / "pr.png")
    plot_per_class_ap(project / "evaluations", VARIANTS, project / "ap.png")
    assert style() == before


@pytest.mark.parametrize("content", ["", "step,epoch\n1,1\n", "step,loss\n1,nonsense\n", "\x00\x01"])
def test_a_curve_that_is_not_one_is_named_with_its_stage(project: Path, content: str) -> None:
    (project / "runs/tiny/curve.csv").write_text(content)
    with pytest.raises(ValueError, match=r"runs/tiny/curve\.csv is not a table .*`dvc repro -f train@tiny`"):
        plot_learning_curves(project / "runs", VARIANTS, project / "learning.png")
    assert not (project / "learning.png").exists()


def test_a_missing_curve_is_named_with_its_stage(project: Path) -> None:
    (project / "evaluations/base/per_class.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"per_class\.csv is missing: run `dvc repro evaluate@base`"):
        plot_per_class_ap(project / "evaluations", VARIANTS, project / "ap.png")


@settings(deadline=None)  # the first example imports torch
@given(x=st.integers(0, 50), y=st.integers(0, 40), size=st.integers(4, 30), scale=st.sampled_from([1, 2, 3]))
def test_pixels_change_in_the_mask_and_the_box_only(x: int, y: int, size: int, scale: int) -> None:
    image = np.zeros((80, 90, 3), np.uint8)
    bitmap = np.zeros((80, 90), bool)
    bitmap[y : y + size, x : x + size] = True
    box = np.array([[x, y, x + size, y + size]])
    # A label without ink, as its text may be wider than the box.
    drawn = draw_instances(image, box, bitmap[None], [0], None, [""], scale=scale)
    changed = drawn.any(axis=2)
    assert changed.shape == (80 * scale, 90 * scale)
    inside = np.kron(bitmap, np.ones((scale, scale))) > 0
    assert changed[inside].all()
    near = cv2.dilate(inside.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
    assert not changed[~near].any()
    assert not image.any(), "the image itself is left as it was"


def test_run_lengths_and_booleans_are_drawn_alike() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    bitmaps = np.zeros((2, HEIGHT, WIDTH), bool)
    bitmaps[0, 4:20, 4:20] = bitmaps[1, 10:30, 10:30] = True
    boxes = np.array([[4, 4, 20, 20], [10, 10, 30, 30]])
    arguments = (image, boxes), ([0, 1], [0.9, 0.8], ["disc", "bar"])
    encoded = draw_instances(*arguments[0], [encode(bitmap) for bitmap in bitmaps], *arguments[1])
    np.testing.assert_array_equal(encoded, draw_instances(*arguments[0], bitmaps, *arguments[1]))


def test_overlapping_masks_show_the_image_and_both_colours() -> None:
    image = np.full((60, 60, 3), 255, np.uint8)
    whole = np.ones((2, 60, 60), bool)
    drawn = draw_instances(image, np.array([[0, 0, 1, 1]] * 2), whole, [0, 1], None, ["", ""])
    assert drawn[40, 40].min() > 150, "shared pixels are darkened"


def test_nothing_is_drawn_without_objects() -> None:
    image = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(draw_instances(image, np.zeros((0, 4)), [], [], [], ["disc"]), image)


def gallery(folder: Path, **changes: Any) -> list[Path]:
    arguments: dict[str, Any] = {"variant": "tiny", "score_threshold": 0.5, "num_images": 3}
    out = folder / "gallery"
    arguments |= changes
    return draw_gallery(folder, folder / "val.json", folder / "predictions.segm.json", out, **arguments)


def test_the_gallery_spreads_evenly_over_the_images(pictures: Path) -> None:
    written = gallery(pictures)
    assert [path.name for path in written] == ["1.png", "3.png", "5.png"]
    assert sorted(pictures.glob("gallery/*")) == written
    assert len(gallery(pictures, num_images=99)) == EMPTY_IMAGE_ID
    chosen = gallery(pictures, image_ids=[4, 2, 1, 5])
    assert [path.name for path in chosen] == ["4.png", "2.png", "1.png"]


def test_the_gallery_shows_truth_and_prediction_enlarged(pictures: Path) -> None:
    first, _, last = gallery(pictures)
    image = read_png(first)
    assert image.shape == (512 + 48, 2 * 640 + 36, 3)
    orange = (image[300, 12 + 320], image[300, 12 + 640 + 12 + 320])  # the middles of the two discs
    assert all(pixel.any() for pixel in orange)
    empty = read_png(last)[36 : 36 + 512, 12 : 12 + 640]
    assert not empty.any()


def test_the_gallery_leaves_out_what_is_below_the_threshold(pictures: Path) -> None:
    image = read_png(gallery(pictures, score_threshold=0.95)[0])
    assert image[300, 12 + 320].any()
    assert not image[36 : 36 + 512, 12 + 640 + 12 : -12].any()


def test_a_detector_that_found_nothing_has_a_gallery(pictures: Path) -> None:
    write_json(pictures / "predictions.segm.json", [])
    assert len(gallery(pictures)) == 3


def test_the_overview_has_a_row_an_image_and_a_column_a_variant(pictures: Path) -> None:
    predictions = dict.fromkeys(VARIANTS, pictures / "predictions.segm.json")
    path = pictures / "figures/predictions.png"
    draw_overview(pictures, pictures / "val.json", predictions, path, score_threshold=0.5, num_images=2)
    assert read_png(path).shape == (36 + 2 * (288 + 12), 12 + 4 * (360 + 12), 3)
    assert [file.name for file in path.parent.iterdir()] == ["predictions.png"]


RLE = encode(np.ones((HEIGHT, WIDTH)))


@pytest.mark.parametrize(
    "content",
    [
        "[{",
        "{}",
        '[{"image_id": 1}]',
        json.dumps([{"image_id": 1, "category_id": 7, "score": 1, "segmentation": [[1, 1, 5, 1, 5, 5]]}]),
        json.dumps([{"image_id": 1, "category_id": 9, "score": 1, "segmentation": RLE}]),
        json.dumps([{"image_id": 9, "category_id": 7, "score": 1, "segmentation": RLE}]),
    ],
)
def test_predictions_that_are_none_are_one_sentence(pictures: Path, content: str) -> None:
    (pictures / "predictions.segm.json").write_text(content)
    with pytest.raises(ValueError, match=r"predictions\.segm\.json.*`dvc repro -f evaluate@tiny`") as caught:
        gallery(pictures)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"images": [], "annotations": [], "categories": []}'])
def test_ground_truth_that_is_none_is_one_sentence(pictures: Path, content: str) -> None:
    (pictures / "val.json").write_text(content)
    with pytest.raises(ValueError, match=r"val\.json.*`dvc repro validate_data`"):
        gallery(pictures)


@pytest.mark.parametrize(
    ("file", "stage"), [("predictions.segm.json", "evaluate@tiny"), ("val.json", "fetch_data")]
)
def test_a_missing_gallery_input_is_named_with_its_stage(pictures: Path, file: str, stage: str) -> None:
    (pictures / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing: run `dvc repro {stage}`"):
        gallery(pictures)


def test_a_missing_image_is_named(pictures: Path) -> None:
    (pictures / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png is missing or not an image"):
        gallery(pictures)


def test_the_published_table_is_that_of_the_paper() -> None:
    rows = [(row.name, row.bbox_map, row.segm_map, row.params_printed) for row in PUBLISHED.values()]
    assert rows == [
        ("DFvT-T", 34.8, 32.6, "25M"),
        ("DFvT-S", 39.2, 36.3, "32M"),
        ("DFvT-B", 43.4, 39.0, "58M"),
    ]

"""The report shows what the stages measured, or says in one sentence which stage has to run."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pycocotools import mask as rle

from dfvt.data.manifest import DatasetManifest
from dfvt.reports import curves, labels
from dfvt.reports.curves import LOSSES, plot_learning_curves, plot_per_class_ap, plot_precision_recall
from dfvt.reports.drawing import optional_picture
from dfvt.reports.error_plots import plot_confusion, plot_errors
from dfvt.reports.errors import write_table
from dfvt.reports.figures import DPI, figure_style
from dfvt.reports.gallery import (
    choose_instances,
    draw_gallery,
    draw_overview,
    load_ground_truth,
    read_instances,
    spread_images,
    write_instances,
)
from dfvt.reports.instances import draw_instances
from dfvt.reports.labels import label_of
from dfvt.reports.published import PUBLISHED
from dfvt.reports.results import AP_KEYS, FIGURES, write_results
from dfvt.reports.tables import markdown_table

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
        recalls = {"iou_type": ["bbox", "bbox", "segm"], "recall": [0, 1, 0], "precision": [1, 0.1, -1]}
        pd.DataFrame(recalls).to_csv(evaluation / "precision_recall.csv", index=False)
        sizes[variant] = {
            "num_params": 4_321_987 + index,
            "backbone_params": 3_680_067,
            "flops": 1_230_000_000,
            "input_shape": [128, 160],
        }
        keys = [key for keys in AP_KEYS.values() for key in keys]
        undefined = None if variant == "tiny" else -1.0
        metrics = dict.fromkeys(keys, 0.25) | {"bbox_mAP": 0.4567 + index / 10, "segm_mAP_l": undefined}
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
    assert "| DFvT-T | 0.457 | 0.348 | 0.250 | 0.326 |" in text
    assert "| DFvT-S | 0.557 | 0.392 | 0.250 | 0.363 |" in text
    assert "| DFvT-B | 0.657 | 0.434 | 0.250 | 0.390 |" in text
    size = (
        "| DFvT-B | 4,321,989 | 3,680,067 | 58M | 57,392,840 | 128×160 | 1.23G | 242G | 235.94G (236.70G) |"
    )
    assert size in text
    assert "percent" not in text


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
    numbers = " | ".join(["0.250"] * 5)
    assert f"| DFvT-T | mask | {numbers} | \N{EN DASH} |" in text, "null, as evaluate writes"
    assert f"| DFvT-S | mask | {numbers} | \N{EN DASH} |" in text, "COCO's −1, as earlier versions wrote"
    assert "-1.0" not in text


def test_numbers_of_other_data_are_refused(project: Path) -> None:
    file = project / "metrics/evaluate_small.json"
    metrics = json.loads(file.read_text())
    same = manifest("coco2017", generated=False).reference.model_dump()
    write_json(file, metrics | {"data": same})
    results_of(project)
    write_json(file, metrics | {"data": {"name": "mini", "hash": "0" * 12}})
    sentence = (
        r"evaluate_small\.json is of another data set \(mini, hash 0+\): run `dvc repro evaluate@small`"
    )
    with pytest.raises(ValueError, match=sentence):
        results_of(project)


def test_a_figure_that_was_not_drawn_is_left_out(project: Path) -> None:
    (project / "reports/figures/predictions.png").unlink()
    text = results_of(project)
    assert "figures/predictions.png" not in text
    assert "figures/errors.png" in text


def test_a_cell_of_a_table_is_one_cell() -> None:
    *_, row = markdown_table(["a", "b"], [["x|y", "two\nlines"]]).splitlines()
    assert row == r"| x\|y | two lines |"


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("metrics/profile.json", "profile"),
        ("metrics/evaluate_small.json", "evaluate@small"),
        ("runs/base/run.json", "train@base"),
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


def test_no_curve_and_no_bar_is_cut_off(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure))
    for number, variant in enumerate(VARIANTS, 1):
        run = project / "runs" / variant
        table = pd.read_csv(run / "curve.csv").assign(loss=10.0**number)
        table.to_csv(run / "curve.csv", index=False)
        pd.read_csv(run / "val.csv").assign(segm_mAP=0.3 * number).to_csv(run / "val.csv", index=False)
        ap = {"class": ["disc"], "bbox_AP": [0.1], "segm_AP": [0.3 * number]}
        pd.DataFrame(ap).to_csv(project / "evaluations" / variant / "per_class.csv", index=False)
    plot_learning_curves(project / "runs", VARIANTS, project / "learning.png")
    plot_per_class_ap(project / "evaluations", VARIANTS, project / "classes.png")
    learning, classes = figures
    top = {ax.get_title(): ax.get_ylim()[1] for ax in learning.axes}
    assert top["total loss"] > 1000 and top["validation mask mAP"] > 0.9
    assert [ax.get_xlim()[0] for ax in classes.axes] == [0, 0]
    assert all(ax.get_xlim()[1] > 0.9 for ax in classes.axes)


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


def gallery(
    folder: Path, *, score_threshold: float = 0.5, num_images: int = 3, image_ids: list[int] | None = None
) -> list[Path]:
    truth = load_ground_truth(folder / "val.json")
    chosen = spread_images(truth, num_images) if image_ids is None else image_ids
    found = read_instances(folder / "predictions.segm.json", truth, "tiny", score_threshold)
    return draw_gallery(
        folder, truth, found, folder / "gallery", title="DFvT-T", image_ids=chosen, warn=refuse_warning
    )


def refuse_warning(sentence: str) -> None:
    raise AssertionError(sentence)


def test_the_gallery_spreads_evenly_over_the_images(pictures: Path) -> None:
    written = gallery(pictures)
    assert [path.name for path in written] == ["1.png", "3.png", "5.png"]
    assert sorted(pictures.glob("gallery/*")) == written
    assert len(gallery(pictures, num_images=99)) == EMPTY_IMAGE_ID
    assert gallery(pictures, num_images=0) == []
    chosen = gallery(pictures, image_ids=[4, 2, 1])
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


def test_a_gallery_is_of_predictions_in_memory_or_of_the_file_with_its_own(pictures: Path) -> None:
    truth = load_ground_truth(pictures / "val.json")
    records = json.loads((pictures / "predictions.segm.json").read_text())
    (expected, *_) = gallery(pictures)
    wanted = expected.read_bytes()
    chosen = choose_instances(records, [1, 3], 0.5)
    assert sorted(chosen) == [1, 3]
    assert choose_instances(records, [1, 3], 0.95) == {}
    write_instances(chosen, pictures / "predictions.segm.json")
    assert read_instances(pictures / "predictions.segm.json", truth, "tiny", 0.5) == chosen
    assert gallery(pictures)[0].read_bytes() == wanted


def test_the_overview_has_a_row_an_image_and_a_column_a_variant(pictures: Path) -> None:
    truth = load_ground_truth(pictures / "val.json")
    found = read_instances(pictures / "predictions.segm.json", truth, "tiny", 0.5)
    path = pictures / "figures/predictions.png"
    draw_overview(pictures, truth, dict.fromkeys(VARIANTS, found), path, image_ids=spread_images(truth, 2))
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


def test_a_picture_that_cannot_be_drawn_is_a_warning_and_the_others_are_drawn(pictures: Path) -> None:
    (pictures / "2.png").unlink()
    (pictures / "3.png").write_bytes(b"no image")
    truth, warnings = load_ground_truth(pictures / "val.json"), list[str]()
    written = draw_gallery(
        pictures, truth, {}, pictures / "gallery", title="", image_ids=[1, 2, 3, 4], warn=warnings.append
    )
    assert [path.name for path in written] == ["1.png", "4.png"]
    assert sorted(pictures.glob("gallery/*")) == written
    assert len(warnings) == 2
    assert (
        f"the picture {pictures}/gallery/2.png was not drawn: {pictures}/2.png does not exist" in warnings[0]
    )
    assert f"{pictures}/3.png: it is no image that can be read" in warnings[1]


def test_a_stop_by_the_user_is_no_warning(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), optional_picture(tmp_path / "a.png", refuse_warning):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "box",
    [
        [30, 25, 10, 8],
        [10, 25, 30, 8],
        [0, 0, 1e300, 1],
        [-1e9, -1e9, 1e9, 1e9],
        [5, 5, 5, 5],
        [0, 0, -1e308, 9],
    ],
)
def test_any_box_is_drawn(box: list[float]) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = draw_instances(image, np.array([box], float), [None], [0], None, ["disc"], scale=2.0)
    assert drawn.shape == (2 * HEIGHT, 2 * WIDTH, 3)


def test_a_box_of_negative_width_is_drawn_where_it_lies() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    negative, positive = np.array([[40, 20, 10, 50]]), np.array([[10, 20, 40, 50]])
    drawn = draw_instances(image, negative, [None], [0], None, [""])
    np.testing.assert_array_equal(drawn, draw_instances(image, positive, [None], [0], None, [""]))
    assert drawn.any()


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1)])
def test_an_image_of_extreme_sides_is_drawn(shape: tuple[int, int]) -> None:
    drawn = draw_instances(np.zeros((*shape, 3), np.uint8), np.zeros((0, 4)), [], [], None, [], scale=1e-4)
    assert drawn.shape == (1, 1, 3)


ODD_NAMES = (
    "None",
    "NA",
    "",
    "nan",
    "$x_$",
    "$\\frac$",
    "a\nb",
    "a\rb",
    "\0",
    "x" * 250,
    "鱼",
    "_hidden",
    "a&b",
)


def test_classes_of_any_name_have_figures(project: Path, recwarn: pytest.WarningsRecorder) -> None:
    for variant in VARIANTS:
        table = pd.DataFrame({"class": ODD_NAMES, "bbox_AP": 0.5, "segm_AP": 0.5})
        write_table(table, project / "evaluations" / variant / "per_class.csv")
    plot_per_class_ap(project / "evaluations", VARIANTS, project / "classes.png")
    confusion = pd.DataFrame({"actual": ODD_NAMES, "predicted": ODD_NAMES[::-1], "number": 3})
    write_table(confusion, project / "confusion.csv")
    plot_confusion(project / "confusion.csv", "evaluate@tiny", project / "confusion.png")
    assert read_png(project / "classes.png").shape[1] == 10 * DPI
    assert read_png(project / "confusion.png").any()
    image = np.zeros((90, 90, 3), np.uint8)
    for label in range(len(ODD_NAMES)):
        draw_instances(image, np.array([[9, 30, 60, 60]]), [None], [label], [0.5], ODD_NAMES)
    assert not recwarn.list, [str(one.message) for one in recwarn]


def test_confusions_of_many_classes_are_a_picture_of_a_usual_size(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(300)]
    write_table(pd.DataFrame({"actual": names, "predicted": names, "number": 1}), tmp_path / "confusion.csv")
    plot_confusion(tmp_path / "confusion.csv", "evaluate@tiny", tmp_path / "confusion.png")
    assert max(read_png(tmp_path / "confusion.png").shape) < 4000


def test_no_confusions_are_a_picture(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"actual": [], "predicted": [], "number": []}), tmp_path / "confusion.csv")
    plot_confusion(tmp_path / "confusion.csv", "evaluate@tiny", tmp_path / "confusion.png")
    assert read_png(tmp_path / "confusion.png").any()


def test_a_detector_without_masks_has_figures(project: Path) -> None:
    for variant in VARIANTS:
        run, evaluation = project / "runs" / variant, project / "evaluations" / variant
        pd.read_csv(run / "curve.csv").assign(loss_mask="").to_csv(run / "curve.csv", index=False)
        pd.read_csv(run / "val.csv").assign(segm_mAP="").to_csv(run / "val.csv", index=False)
        for name in ("per_class.csv", "precision_recall.csv"):
            table = pd.read_csv(evaluation / name).drop(columns="segm_AP", errors="ignore")
            table[~table.isin(["segm"]).any(axis=1)].to_csv(evaluation / name, index=False)
        rows = {"iou_type": "bbox", "error": ["missed"], "number": 1, "AP50_cost": 0.5}
        pd.DataFrame(rows).to_csv(evaluation / "errors.csv", index=False)
        metrics = json.loads((project / f"metrics/evaluate_{variant}.json").read_text())
        boxes = {name: value for name, value in metrics.items() if name.startswith("bbox")}
        write_json(project / f"metrics/evaluate_{variant}.json", boxes)
    plot_learning_curves(project / "runs", VARIANTS, project / "learning.png")
    for plot in (plot_precision_recall, plot_per_class_ap, plot_errors):
        plot(project / "evaluations", VARIANTS, project / f"{plot.__name__}.png")
        assert read_png(project / f"{plot.__name__}.png").any()
    text = results_of(project)
    assert "| DFvT-T | 0.457 | 0.348 | \N{EN DASH} | 0.326 |" in text
    assert "| DFvT-T | mask |" not in text


def test_labels_are_short_lines() -> None:
    assert label_of("traffic light") == "traffic light"
    assert label_of("a\n\tb") == "a  b"
    assert label_of("a\0\ud800") == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert len(label_of("x" * 250)) == 40 and label_of("x" * 250).endswith("…")


def test_a_font_is_found_for_the_characters_that_the_default_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    latin, chinese = "/fonts/latin.ttf", "/fonts/chinese.ttc"
    files = {"DejaVu Sans": latin, "Other": "/fonts/other.ttf", "Noto Sans CJK SC": chinese}
    characters = {latin: "abc♂", "/fonts/other.ttf": "abc鱼", chinese: "abc鱼虾"}
    monkeypatch.setattr(labels, "_file_of", files.__getitem__)
    monkeypatch.setattr(labels, "_other_families", lambda: ["Noto Sans CJK SC", "Other"])
    monkeypatch.setattr(labels, "_characters_of", lambda file: frozenset(map(ord, characters[file])))
    assert labels.font_families(["abc", "a♂"]) == ["DejaVu Sans"]
    assert labels.font_families(["abc", "鱼 虾"]) == ["DejaVu Sans", "Noto Sans CJK SC"]
    assert labels.font_file(["abc", "a♂"]) == latin
    assert labels.font_file(["a鱼", "虾"]) == chinese
    assert labels.missing_characters(["a鱼", "蟹\n"]) == "蟹"
    assert labels.missing_font_warning(["abc鱼"]) is None
    assert "no installed font has these characters of the class names: 蟹;" in str(
        labels.missing_font_warning(["蟹"])
    )


def test_a_character_of_another_font_is_drawn_from_there(tmp_path: Path) -> None:
    default, other = (labels._characters_of(labels._file_of(name)) for name in ("DejaVu Sans", "STIXGeneral"))
    name = chr(min(other - default))  # both fonts come with matplotlib
    assert labels.missing_characters([name]) == ""
    assert labels.font_file([name]) != labels._file_of("DejaVu Sans")
    with warnings.catch_warnings(), figure_style([name]):
        warnings.simplefilter("error")  # matplotlib warns of a character that no font of the list has
        figure = Figure()
        figure.text(0.5, 0.5, name)
        figure.savefig(tmp_path / "a.png")
        with pytest.raises(UserWarning, match="missing from font"):
            figure.text(0.2, 0.5, "\U000e0041\uf8ff")
            figure.savefig(tmp_path / "b.png")


def test_the_published_table_is_that_of_the_paper() -> None:
    rows = [(row.name, row.bbox_map, row.segm_map, row.params_printed) for row in PUBLISHED.values()]
    assert rows == [
        ("DFvT-T", 0.348, 0.326, "25M"),
        ("DFvT-S", 0.392, 0.363, "32M"),
        ("DFvT-B", 0.434, 0.390, "58M"),
    ]

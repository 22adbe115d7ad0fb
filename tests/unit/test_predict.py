"""`dfvt predict` finds what `dfvt test` finds, and says which files are none."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmcv import Config, ConfigDict
from PIL import ExifTags, Image
from pycocotools.coco import COCO

from dfvt.cli import main
from dfvt.data.images import read_image
from dfvt.data.manifest import DatasetManifest
from dfvt.engine.datasets import build_coco_dataset
from dfvt.engine.evaluate import predict as predict_dataset
from dfvt.engine.infer import build_bare_detector, load_detector
from dfvt.engine.loaders import require_color_type, steps_of
from dfvt.engine.predict import Prediction, Predictor, predict_files
from dfvt.engine.support import check_supported
from dfvt.reports.predictions import PredictionFiles, earlier_pictures, picture_names, same_file_key

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 4])
def test_it_finds_what_an_evaluation_finds(
    config: Config, checkpoint: Path, shapes: DatasetManifest, batch_size: int
) -> None:
    model, dataset = load_detector(config, checkpoint, CPU)
    expected = predict_dataset(model, dataset, CPU)
    paths = [shapes.val_images_path / info["filename"] for info in dataset.data_infos]
    predictor = Predictor(config, checkpoint, CPU)
    assert predictor.classes == ("disk", "box", "triangle", "star")
    found = dict(predict_files(predictor, paths, batch_size=batch_size))
    assert list(found) == paths
    for path, (boxes, masks) in zip(paths, expected, strict=True):
        prediction = found[path]
        assert not isinstance(prediction, str)
        assert (prediction.height, prediction.width) == (64, 80)
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
        for label in range(4):
            of_class = prediction.labels == label
            order = np.argsort(-boxes[label][:, 4], kind="stable")
            # in a batch sums are added in another order
            tolerance = {"rtol": 0, "atol": 0} if batch_size == 1 else {"rtol": 1e-4, "atol": 1e-3}
            np.testing.assert_allclose(prediction.boxes[of_class], boxes[label][order, :4], **tolerance)
            np.testing.assert_allclose(prediction.scores[of_class], boxes[label][order, 4], **tolerance)
            if batch_size == 1:
                assert prediction.masks is not None
                ours = [mask["counts"] for mask, of in zip(prediction.masks, of_class, strict=True) if of]
                assert ours == [masks[label][index]["counts"].decode() for index in order]


COLOUR_TYPES = [
    *(("color", "bgr"), ("color", "rgb"), ("color_ignore_orientation", "bgr"), ("unchanged", "bgr")),
    *(("grayscale", "bgr"), ("grayscale_ignore_orientation", "bgr")),
]


def with_colour_type(config: Config, color_type: str, channel_order: str = "bgr") -> Config:
    """The config with loaders of that kind in all its pipelines, and one mean of grey images."""
    for split in ("train", "val", "test"):
        for step in steps_of(config.data[split].pipeline):
            if step["type"] == "LoadImageFromFile":
                step.update(color_type=color_type, channel_order=channel_order)
            if step["type"] == "Normalize" and color_type.startswith("gray"):
                step.update(mean=[100.0], std=[50.0], to_rgb=False)
    return config


@pytest.fixture
def turned(config: Config, shapes: DatasetManifest, tmp_path: Path) -> Path:
    """The config's test image, stored sideways with an Exif orientation."""
    folder = tmp_path / "turned"
    shutil.copytree(shapes.val_images_path, folder)
    config.data.test.img_prefix = str(folder)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = sorted(folder.iterdir())[0]
    Image.open(path).save(path, exif=exif, quality=95)
    return path


@pytest.mark.parametrize(("color_type", "channel_order"), COLOUR_TYPES)
def test_an_image_is_prepared_as_an_evaluation_prepares_it(
    config: Config, checkpoint: Path, turned: Path, color_type: str, channel_order: str
) -> None:
    config = with_colour_type(config, color_type, channel_order)
    dataset = build_coco_dataset(config.data.test, test_mode=True)
    (index,) = [i for i, info in enumerate(dataset.data_infos) if info["filename"] == turned.name]
    (expected,), (meta,) = (dataset[index][key] for key in ("img", "img_metas"))
    predictor = Predictor(config, checkpoint, CPU)
    for source in (turned, turned.read_bytes()):
        (image,) = predictor.prepare(predictor.read(source))["img"]
        assert torch.equal(image, expected)
    (prepared,) = predictor.prepare(predictor.read(turned))["img_metas"]
    assert prepared.data["ori_shape"][:2] == meta.data["ori_shape"][:2]


@pytest.mark.parametrize(
    ("color_type", "sentence"),
    [
        (
            "grayscale",
            "of 1 channel, but its Normalize has 3 values of mean and to_rgb=True: give one of mean",
        ),
        ("colour", "color_type 'colour' of LoadImageFromFile in data.train must be one of color, grayscale"),
    ],
)
def test_a_colour_type_that_cannot_be_is_told_before_anything(
    config: Config, checkpoint: Path, color_type: str, sentence: str
) -> None:
    for split in ("train", "val", "test"):
        config.data[split].pipeline[0].color_type = color_type
    with pytest.raises(ValueError, match=sentence):
        check_supported(config)
    with pytest.raises(ValueError, match=sentence):
        Predictor(config, checkpoint, CPU)
    with pytest.raises(ValueError, match=sentence):
        load_detector(config, checkpoint, CPU)


def test_a_config_is_compared_with_the_check_of_the_data_set(config: Config) -> None:
    require_color_type(config, "color")
    config = with_colour_type(config, "color_ignore_orientation")
    require_color_type(config, "color_ignore_orientation")
    with pytest.raises(ValueError, match=r"set validation\.color_type of params\.yaml to color_ignore_or"):
        require_color_type(config, "color")


def test_a_test_pipeline_in_a_wrapper_is_found(config: Config, checkpoint: Path, turned: Path) -> None:
    plain = Predictor(config, checkpoint, CPU)
    config.data.test = ConfigDict(type="RepeatDataset", times=2, dataset=config.data.test)
    wrapped = Predictor(config, checkpoint, CPU)
    assert wrapped.classes == plain.classes
    images = [one.prepare(one.read(turned))["img"][0] for one in (plain, wrapped)]
    assert torch.equal(*images)
    with pytest.raises(
        ValueError, match=r"data\.test is a RepeatDataset: COCO's evaluation needs one data set"
    ):
        load_detector(config, checkpoint, CPU)


def test_images_of_different_sizes_in_one_batch(config: Config, checkpoint: Path) -> None:
    predictor = Predictor(config, checkpoint, CPU)
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 80), (80, 64), (64, 80), (33, 200))
    ]
    together = predictor(images)
    for image, one in zip(images, together, strict=True):
        (alone,) = predictor([image])
        assert (one.height, one.width) == image.shape[:2]
        np.testing.assert_allclose(one.scores, alone.scores, rtol=1e-4)


def test_threads_share_a_detector(config: Config, checkpoint: Path) -> None:
    predictor = Predictor(config, checkpoint, CPU)
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    (alone,) = predictor([image])
    with ThreadPoolExecutor(4) as threads:
        for (one,) in threads.map(predictor, [[image]] * 12):
            np.testing.assert_array_equal(one.boxes, alone.boxes)
            assert one.masks == alone.masks


def test_a_picture_of_each_image_and_a_data_set_of_all(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(shapes.val_images_path.parent)
    out = tmp_path / "found"
    arguments = ["predict", config_file, str(checkpoint), "val2017", "--out", str(out), "--score", "0.0"]
    assert main([*arguments, "--gpus", "0"]) == 0
    assert "on 6 images" in capsys.readouterr().out
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == sorted(path.name for path in Path("val2017").iterdir())
    assert Image.open(out / "pictures" / pictures[0]).size == (80, 64)
    found = COCO(str(out / "predictions.json"))
    assert [image["file_name"] for image in found.imgs.values()] == sorted(f"val2017/{n}" for n in pictures)
    assert len(found.anns) == 60
    for item in found.anns.values():
        assert 0 <= item["score"] <= 1
        assert found.annToMask(item).shape == (64, 80)
    page = tmp_path / "page.html"
    look = ["data", "browse", ".", "--annotations", str(out / "predictions.json"), "--images", "."]
    assert main([*look, "--out", str(page)]) == 0
    assert page.read_text().count("<rect") == 60


def test_the_least_score_and_no_pictures(
    config_file: str, checkpoint: Path, shapes: DatasetManifest, tmp_path: Path
) -> None:
    out = tmp_path / "found"
    image = next(shapes.val_images_path.iterdir())
    arguments = ["predict", config_file, str(checkpoint), str(image), "--work-dir", str(out), "--score", "1"]
    assert main([*arguments, "--no-pictures", "--gpus", "0"]) == 0
    content = json.loads((out / "predictions.json").read_text())
    assert content["annotations"] == [] and len(content["images"]) == 1
    assert [path.name for path in out.iterdir()] == ["predictions.json"]


def test_pictures_of_another_time_do_not_stay(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "found"
    first, second, *_ = sorted(shapes.val_images_path.iterdir())
    for image in (first, second):
        assert (
            main(["predict", config_file, str(checkpoint), str(image), "--out", str(out), "--gpus", "0"]) == 0
        )
    assert [path.name for path in (out / "pictures").iterdir()] == [f"{second.stem}.jpg"]
    (out / "predictions.json").write_text("[1]")
    assert main(["predict", config_file, str(checkpoint), str(first), "--out", str(out), "--gpus", "0"]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert main(["predict", config_file, str(checkpoint), "--out", str(out)]) == 2
    assert "no image is named: " in capsys.readouterr().err


def test_files_that_are_no_images_are_named_and_left_out(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no image")
    good = next(shapes.val_images_path.iterdir())
    (folder / "good.jpg").write_bytes(good.read_bytes())
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:-200])
    Image.fromarray(read_image(good)[..., 0]).save(folder / "grey.png")
    out = tmp_path / "found"
    assert main(["predict", config_file, str(checkpoint), str(folder), "--out", str(out), "--gpus", "0"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "dfvt: 3 of 5 images could not be read"
    assert sorted(line.split(": ")[1:] for line in err[:-1])[1:] == [
        [str(folder / "empty.jpg"), "it is empty"],
        [str(folder / "text.png"), "it is no image that can be read"],
    ]
    assert {path.name for path in (out / "pictures").iterdir()} == {"good.jpg", "grey.jpg"}


def test_files_of_one_name_have_pictures_of_their_own(
    config_file: str, checkpoint: Path, shapes: DatasetManifest, tmp_path: Path
) -> None:
    image = next(shapes.val_images_path.iterdir())
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.jpg").write_bytes(image.read_bytes())
    images = [str(tmp_path / folder / "one.jpg") for folder in "ab"]
    arguments = ["predict", config_file, str(checkpoint), *images, "--out", str(tmp_path / "found")]
    assert main([*arguments, "--gpus", "0"]) == 0
    names = {path.name for path in (tmp_path / "found/pictures").iterdir()}
    assert names == {"one-0001.jpg", "one-0002.jpg"}
    content = json.loads((tmp_path / "found/predictions.json").read_text())
    pictures = {image["file_name"]: image["picture"] for image in content["images"]}
    assert pictures == {images[0]: "pictures/one-0001.jpg", images[1]: "pictures/one-0002.jpg"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.jpg", "b.png"], ["a.jpg", "b.jpg"]),
        (["cam1/a.jpg", "cam2/a.jpg", "cam3/b.jpg"], ["a-0001.jpg", "a-0002.jpg", "b.jpg"]),
        (["cam1/a.jpg", "cam2/a.jpg", "cam3/a-0001.jpg"], ["a-0001-0001.jpg", "a-0002.jpg", "a-0001.jpg"]),
        (["a-0001.jpg", "a.jpg", "A.jpg"], ["a-0001.jpg", "a-0002.jpg", "A-0003.jpg"]),
        (["x/\u00e9.jpg", "y/e\u0301.jpg"], ["\u00e9-0001.jpg", "e\u0301-0002.jpg"]),
        (["line\nbreak.jpg", "byte\udcff.jpg", "12:30?.jpg"], ["line_break.jpg", "byte_.jpg", "12_30_.jpg"]),
        (["\u20ac" * 83 + ".jpg"], ["\u20ac" * 66 + ".jpg"]),
        (["x" * 255, "x" * 254], ["x" * 200 + "-0001.jpg", "x" * 200 + "-0002.jpg"]),
    ],
)
def test_pictures_have_names_of_their_own(paths: list[str], names: list[str]) -> None:
    assert picture_names([Path(path) for path in paths]) == names


LETTERS = st.sampled_from(["a", "A", "-", "0001", "0002", "ss", "\u00df", "\n", "\udcff", ".", "?"])


@given(st.lists(st.lists(LETTERS, min_size=1, max_size=4).map("".join), max_size=8))
def test_no_two_pictures_have_one_name(stems: list[str]) -> None:
    paths = [Path(str(number), f"{stem}.jpg") for number, stem in enumerate(stems)]
    names = picture_names(paths)
    assert len(set(map(same_file_key, names))) == len(paths)
    assert all(name.isprintable() and len(name.encode()) < 256 for name in names)


def test_names_of_many_pictures_take_no_time() -> None:
    paths = [Path(f"camera{number}", "frame.jpg") for number in range(30_000)]
    begin = time.process_time()
    assert len(set(picture_names(paths))) == 30_000
    assert time.process_time() - begin < 4, "quadratic in the number of images: that took 10 s and more"


def test_a_picture_does_not_replace_another(
    config_file: str, checkpoint: Path, shapes: DatasetManifest, tmp_path: Path
) -> None:
    image = next(shapes.val_images_path.iterdir())
    images = ["cam1/a.jpg", "cam2/a.jpg", "cam3/a-0001.jpg", "cam4/caf\udce9\n.jpg"]
    for name in images:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(image.read_bytes())
    out = tmp_path / "found"
    arguments = ["predict", config_file, str(checkpoint), *(str(tmp_path / name) for name in images)]
    assert main([*arguments, "--out", str(out), "--gpus", "0"]) == 0
    content = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    pictures = [entry["picture"] for entry in content["images"]]
    assert len({(out / picture).read_bytes() for picture in pictures}) == 1, "they show the same image"
    assert sorted(pictures) == sorted(f"pictures/{path.name}" for path in (out / "pictures").iterdir())
    assert len(pictures) == 4
    assert content["images"][3]["file_name"].endswith("caf\\xe9\n.jpg"), "JSON holds text alone"
    look = ["data", "browse", ".", "--annotations", str(out / "predictions.json"), "--images", "."]
    assert main([*look, "--out", str(tmp_path / "page.html")]) == 0


def test_predict_takes_no_picture_of_its_own_and_draws_over_no_image(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = next(shapes.val_images_path.iterdir()).read_bytes()
    for name in ("photos/a.jpg", "pictures/b.jpg"):
        Path(name).parent.mkdir()
        Path(name).write_bytes(content)
    predict = ["predict", config_file, str(checkpoint)]
    for _ in range(2):  # the second finds the pictures of the first
        assert main([*predict, "photos", "--out", "photos", "--gpus", "0"]) == 0
        images = json.loads(Path("photos/predictions.json").read_text(encoding="utf-8"))["images"]
        assert [entry["file_name"] for entry in images] == ["photos/a.jpg"]
        assert [path.name for path in Path("photos/pictures").iterdir()] == ["a.jpg"]
    assert "1 pictures in photos/pictures are left out" in capsys.readouterr().err
    for images, sentence in (
        (["photos/pictures/a.jpg", "--out", "photos"], "all images are pictures that predict wrote"),
        (["pictures", "--out", "."], "pictures/b.jpg lies where predict writes its pictures"),
    ):
        assert main([*predict, *images]) == 2
        assert sentence in capsys.readouterr().err
    Path("b.jpg").write_bytes(content)
    assert main([*predict, "b.jpg", "--out", "."]) == 2
    assert "pictures/b.jpg was not written by predict" in capsys.readouterr().err
    assert Path("pictures/b.jpg").read_bytes() == content and not Path("predictions.json").exists()


def test_an_interrupted_predict_leaves_what_was_there(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "found"
    first, second, *_ = sorted(shapes.val_images_path.iterdir())
    predict, into = ["predict", config_file, str(checkpoint)], ["--out", str(out), "--gpus", "0"]
    assert main([*predict, str(first), *into]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFiles, "add", interrupt)
        assert main([*predict, str(second), *into]) == 130
    assert all(path.read_bytes() == content for path, content in before.items())
    with monkeypatch.context() as patch:
        patch.setattr(PredictionFiles, "save", interrupt)
        assert main([*predict, str(second), *into]) == 130
    assert main([*predict, str(second), *into]) == 0
    assert main([*predict, str(second), *into, "--no-pictures"]) == 0
    assert [path.name for path in out.iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "{}",
        '{"images": [1]}',
        '{"images": [{"picture": 7}]}',
        '{"images": null}',
        "\x00",
        "[" * 100_000,
    ],
)
def test_other_files_are_not_taken_for_predictions(tmp_path: Path, content: str) -> None:
    (tmp_path / "predictions.json").write_text(content)
    with pytest.raises(ValueError, match="was not written by predict: choose another --out"):
        earlier_pictures(tmp_path / "predictions.json")


def test_pictures_elsewhere_are_not_removed(tmp_path: Path) -> None:
    names = ["pictures/a.jpg", "../../b.jpg", "..", "", "/etc/c.jpg"]
    content = {"images": [{"picture": name} for name in names]}
    (tmp_path / "predictions.json").write_text(json.dumps(content))
    assert earlier_pictures(tmp_path / "predictions.json") == ["a.jpg", "b.jpg", "c.jpg"]


def test_predictions_without_masks_or_objects_can_be_browsed(shapes: DatasetManifest, tmp_path: Path) -> None:
    images = sorted(shapes.val_images_path.iterdir())
    files = PredictionFiles(("disk", "box"), 0.3)
    boxes = np.array([[5, 5, 20, 25], [30, 10, 60, 50]], np.float32)
    sure, unsure = np.array([0.9, 0.4], np.float32), np.array([0.2, 0.1], np.float32)
    for image, scores in zip(images, (sure, unsure), strict=False):
        files.add(image.name, Prediction(64, 80, boxes, np.array([0, 1]), scores, None))
    files.save(tmp_path / "predictions.json")
    look = ["data", "browse", str(shapes.val_images_path), "--images", "."]
    look += ["--annotations", str(tmp_path / "predictions.json"), "--out", str(tmp_path / "page.html")]
    assert main(look) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("<rect") == 2
    assert "nothing annotated" in page and "has no polygon" not in page


def test_predictions_on_no_image_cannot_be_browsed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PredictionFiles(("disk",), 0.3).save(tmp_path / "predictions.json")
    look = ["data", "browse", str(tmp_path), "--annotations", "predictions.json", "--images", "."]
    assert main([*look, "--out", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == f"dfvt: {tmp_path}/predictions.json lists no images\n"


def test_an_image_of_which_the_pipeline_leaves_nothing_is_named(
    config_file: str,
    checkpoint: Path,
    shapes: DatasetManifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    thin, good = tmp_path / "thin.png", next(shapes.val_images_path.iterdir())
    Image.fromarray(np.zeros((9_000, 1, 3), np.uint8)).save(thin)
    arguments = ["predict", config_file, str(checkpoint), str(thin), str(good), "--gpus", "0"]
    assert main([*arguments, "--out", str(tmp_path / "found")]) == 2
    err = capsys.readouterr().err
    assert f"{thin}: the config's test pipeline cannot take an image of 1×9000 pixels" in err
    images = json.loads((tmp_path / "found/predictions.json").read_text(encoding="utf-8"))["images"]
    assert [entry["file_name"] for entry in images] == [str(good)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.jpg", "--out", "found"], "there is no file absent.jpg"),
        (["image.jpg"], "--out DIR is missing"),
        (["image.jpg", "--out", "found", "--batch", "0"], "--batch 0 is below 1"),
        (["", "--out", "found"], "an image has an empty name"),
        (["image.jpg", os.devnull, "--out", "found"], "/dev/null is neither a file nor a folder"),
        (["image.jpg", "--out", "image.jpg"], "image.jpg is not a folder: choose another place"),
        (["image.jpg", "--out", "image.jpg/found"], "image.jpg is not a folder: choose another place"),
    ],
)
def test_mistakes_are_one_sentence(
    config_file: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("image.jpg").touch()
    assert main(["predict", config_file, str(checkpoint), *arguments, "--gpus", "0"]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert not Path("found").exists()


def test_classes_are_those_of_the_checkpoint_or_nobody_knows_them(config: Config, tmp_path: Path) -> None:
    weights = build_bare_detector(config).state_dict()
    path = tmp_path / "named.pth"
    torch.save({"state_dict": weights, "meta": {"CLASSES": ("one", "two", "three", "four")}}, path)
    assert Predictor(config, path, CPU).classes == ("one", "two", "three", "four")
    torch.save({"state_dict": weights}, path)
    del config.data.test["classes"]
    with pytest.raises(ValueError, match="nobody names the 4 classes"):
        Predictor(config, path, CPU)


def test_the_data_set_is_not_needed(config: Config, checkpoint: Path, shapes: DatasetManifest) -> None:
    image = next(shapes.val_images_path.iterdir())
    config.data.test.ann_file = "absent.json"
    with pytest.raises(FileNotFoundError):
        build_coco_dataset(config.data.test, test_mode=True)
    ((_, prediction),) = predict_files(Predictor(config, checkpoint, CPU), [image])
    assert not isinstance(prediction, str) and len(prediction.scores) == 10

"""`dfvt data check` says whether a data set is sound, `dfvt data browse` shows it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dfvt.cli import main
from tests.unit.test_coco import TRAIN_JSON, VAL_JSON, edit, pristine, root

__all__ = ["pristine", "root"]  # fixtures


class Tags(HTMLParser):
    """Reads a page; every tag that must be closed is."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.num: dict[str, int] = {}
        self.feed(page.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.num[tag] = self.num.get(tag, 0) + 1
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.num[tag] = self.num.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_sound_data_set(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(root), "--out", str(tmp_path / "report")]) == 0
    out, err = capsys.readouterr()
    assert f"{root}: sound, 1 warning\n" in out and err == ""
    assert re.search(r"images +8 +3", out)
    report = json.loads((tmp_path / "report/validation.json").read_text())
    assert report["splits"]["val2017"]["num_images"] == 3
    page = Tags(tmp_path / "report/validation.html")
    assert page.num["svg"] == 2 and page.num["table"] == 1
    assert "small objects (area below 32²)" in page.texts


def test_problems_are_listed_and_the_exit_code_is_2(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / VAL_JSON, lambda content: content["annotations"][0].update(category_id=99))
    edit(root / TRAIN_JSON, lambda content: content["annotations"][0].update(bbox=[50, 50, 20, 5]))
    assert main(["data", "check", str(root), "--out", str(tmp_path / "report")]) == 2
    out, err = capsys.readouterr()
    assert "problem: " in out and "category id that is not listed (1, the first is" in out
    assert "warning: " in out and "a box that reaches out of the image" in out
    assert err == f"dfvt: {root}: 1 problem to correct, 3 warnings\n"
    assert "Problems" in Tags(tmp_path / "report/validation.html").texts


def test_the_page_is_the_same_each_time(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["data", "check", str(root), "--out", str(tmp_path / name)]) == 0
    pages = [(tmp_path / name / "validation.html").read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]


def test_class_names_cannot_break_a_page(root: Path, tmp_path: Path) -> None:
    for path in (TRAIN_JSON, VAL_JSON):
        edit(root / path, lambda content: content["categories"][0].update(name="</svg><b>$x^"))
    assert main(["data", "check", str(root), "--out", str(tmp_path)]) == 0
    assert "b" not in Tags(tmp_path / "validation.html").num
    assert main(["data", "browse", str(root), "--out", str(tmp_path / "page.html")]) == 0
    assert "b" not in Tags(tmp_path / "page.html").num


def test_splits_of_different_classes_are_a_problem(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root / VAL_JSON, lambda content: content["categories"][0].update(name="sphere"))
    assert main(["data", "check", str(root)]) == 2
    assert "its categories are not those of" in capsys.readouterr().out


def test_any_split_is_found_and_a_single_file_can_be_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(root / "val2017", root / "pictures")
    shutil.move(root / VAL_JSON, root / "labels.json")
    assert main(["data", "check", str(root), "--annotations", "labels.json", "--images", "pictures"]) == 0
    assert re.search(r"images +3\b", capsys.readouterr().out)
    assert main(["data", "check", str(root)]) == 0
    assert re.search(r"images +8\b", capsys.readouterr().out)


def test_several_files_of_another_layout_are_checked_together(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, annotations in (("train", TRAIN_JSON), ("val", VAL_JSON)):
        shutil.copy(root / annotations, root / f"{split}2017" / "labels.json")
    name = min(path.name for path in (root / "train2017").glob("*.jpg"))
    shutil.copy(root / "train2017" / name, root / "val2017" / "again.jpg")
    edit(root / "val2017/labels.json", lambda content: content["images"][0].update(file_name="again.jpg"))
    pairs = [
        ["--annotations", f"{split}2017/labels.json", "--images", f"{split}2017"]
        for split in ("train", "val")
    ]
    assert main(["data", "check", *pairs[0], *pairs[1], str(root)]) == 0
    out = capsys.readouterr().out
    assert "images with the content of one of another split (1, the first is again.jpg)" in out
    assert "train2017/labels.json" in out and re.search(r"images +8 +3", out)
    browse = ["data", "browse", str(root), *pairs[0], *pairs[1], "--split", "val2017/labels.json"]
    assert main([*browse, "--out", str(root / "page.html")]) == 0


def test_images_may_lie_in_a_folder_of_their_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "images").mkdir()
    for split in ("train2017", "val2017"):
        shutil.move(root / split, root / "images" / split)
    assert main(["data", "check", str(root)]) == 0
    assert re.search(r"images +8 +3", capsys.readouterr().out)


def test_a_folder_whose_name_is_no_text(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "caf\udce9"
    root.rename(folder)
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "report")]) == 0
    assert "caf\\udce9" in (tmp_path / "report/validation.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report/validation.json").read_text(encoding="utf-8"))["problems"] == []
    assert main(["data", "browse", str(folder), "--out", str(tmp_path / "page.html")]) == 0


def test_browse_shows_whatever_ids_and_numbers_there_are(root: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        image, *annotations = content["images"][0], *content["annotations"]
        mine = [item for item in annotations if item["image_id"] == image["id"]]
        image["id"] = 2**70
        for number, item in enumerate(mine):
            item.update(id=-(2**64) - number, image_id=2**70, score="high")
        mine[0].update(bbox=[1e300, -1e300, 0, -5], area=-1e300, category_id=2**80)
        mine[0].pop("segmentation")

    edit(root / VAL_JSON, change)
    out = tmp_path / "page.html"
    assert main(["data", "browse", str(root), "--split", "val2017", "--out", str(out)]) == 0
    assert f"unknown category {2**80}" in out.read_text(encoding="utf-8")
    assert Tags(out).num["figure"] == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["check", "nowhere"], "nowhere is not a directory"),
        (["check", "."], "has no annotations/instances_NAME.json with a folder NAME or images/NAME"),
        (["check", "set", "--images", "val2017"], "--annotations is given 0 times and --images 1 times"),
        (
            ["check", "set", *["--annotations", VAL_JSON] * 2, *["--images", "val2017"] * 2],
            f"--annotations {VAL_JSON} is given twice",
        ),
        (["check", "set", "--images", "x", "--annotations", "y.json"], "set/y.json is missing"),
        (["browse", "set", "--split", "test2017"], "has no split 'test2017': it has train2017, val2017"),
        (["browse", "set", "--class", "cube"], "has no class 'cube': it has disk, box, triangle, star"),
        (["browse", "set", "--num", "0"], "--num 0 is below 1"),
        (["browse", "set", "--out", "set"], "set is no file: name one for the page"),
        (["browse", "set", "--out", "/dev/null"], "/dev/null is no file"),
        (["browse", "set", "--out", f"set/{VAL_JSON}/page.html"], f"set/{VAL_JSON} is not a folder"),
        (["check", "set", "--out", f"set/{VAL_JSON}"], f"set/{VAL_JSON} is not a folder"),
        (["check", "set", "--out", f"set/{VAL_JSON}/report"], f"set/{VAL_JSON} is not a folder"),
        (["check", "set", "--annotations", VAL_JSON, "--images", "no"], "set/no is not a directory"),
    ],
)
def test_mistakes_are_one_sentence(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(root.parent)
    assert main(["data", *arguments]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.startswith("dfvt: ") and err.count("\n") == 1


def test_browse_draws_every_object_and_the_broken_ones_too(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(root / VAL_JSON, lambda content: content["annotations"][0].update(segmentation=[]))
    edit(root / VAL_JSON, lambda content: content["annotations"][1].update(category_id=77))
    (root / "val2017" / "000001000003.jpg").write_bytes(b"no image")
    content = json.loads((root / VAL_JSON).read_text())
    shown = [item for item in content["annotations"] if item["image_id"] != 1_000_003]
    monkeypatch.chdir(tmp_path)
    assert main(["data", "browse", str(root), "--split", "val2017"]) == 0
    assert capsys.readouterr().out == "browse-val2017.html\n"
    page = Tags(tmp_path / "browse-val2017.html")
    assert page.num["figure"] == 3
    assert page.num["rect"] == page.num["path"] == len(shown)
    text = "\n".join(page.texts)
    assert "it is no image that can be read" in text
    assert "has no polygon of three or more corners, and no run lengths" in text
    assert "unknown category 77" in text


def test_browse_one_class_and_other_images_with_another_seed(root: Path, tmp_path: Path) -> None:
    content = json.loads((root / TRAIN_JSON).read_text())
    stars = {item["image_id"] for item in content["annotations"] if item["category_id"] == 4}
    captions = []
    for seed in ("0", "0", "1"):
        arguments = ["--class", "star", "--num", str(len(stars)), "--seed", seed]
        out = tmp_path / f"page-{seed}.html"
        assert main(["data", "browse", str(root), *arguments, "--out", str(out)]) == 0
        texts = Tags(out).texts
        captions.append([text for text in texts if ".jpg, 64×64: " in text])
    assert captions[0] == captions[1] != captions[2]
    assert sorted(captions[0]) == sorted(captions[2])
    assert {int(caption.split(".")[0]) for caption in captions[0]} == stars


def test_large_images_are_shown_smaller(root: Path, tmp_path: Path) -> None:
    path = root / "val2017" / "000001000001.jpg"
    Image.new("RGB", (4000, 3000), "red").save(path, quality=95)
    out = tmp_path / "page.html"
    assert main(["data", "browse", str(root), "--split", "val2017", "--out", str(out)]) == 0
    assert 'viewBox="0 0 4000 3000"' in out.read_text()
    assert out.stat().st_size < 60_000

"""`dvc repro` with profile coco2017, from a server on this machine to validated data."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dfvt.data.shapes import generate_shapes
from tests.conftest import ROOT, Project
from tests.unit.test_coco2017 import pack

pytestmark = pytest.mark.e2e
COCO128 = Path(os.environ.get("DFVT_COCO128", ROOT.parent / "shared/coco128"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def shapes(folder: Path) -> None:
    generate_shapes(folder, num_train=20, num_val=10, height=64, width=80)


def real_images(folder: Path) -> None:
    """128 images of COCO, the last 28 of them for validation."""
    content = json.loads((COCO128 / "annotations/instances_train2017.json").read_text())
    for split, images in (("train2017", content["images"][:100]), ("val2017", content["images"][100:])):
        (folder / split).mkdir(parents=True)
        ids = {image["id"] for image in images}
        for image in images:
            shutil.copy(COCO128 / "train2017" / image["file_name"], folder / split)
        annotations = [item for item in content["annotations"] if item["image_id"] in ids]
        file = folder / f"annotations/instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**content, "images": images, "annotations": annotations}))


without_coco128 = pytest.mark.skipif(
    not COCO128.is_dir(), reason=f"{COCO128} is absent (DFVT_COCO128 names another place)"
)


@pytest.mark.parametrize(
    ("images", "num_images"),
    [(shapes, (20, 10)), pytest.param(real_images, (100, 28), marks=without_coco128)],
)
def test_coco_is_fetched_unpacked_and_validated(
    project: Project,
    served: tuple[Path, str],
    tmp_path: Path,
    images: Callable[[Path], None],
    num_images: tuple[int, int],
) -> None:
    folder, url = served
    images(tmp_path / "images")
    archives = pack(tmp_path / "images", folder)
    for variant in ("tiny", "small", "base"):
        (folder / f"DFvT_{variant}_coco_pretrained.pth").write_bytes(variant.encode())
    project.set_params(
        profile="coco2017",
        data__base_url=[f"{url}nowhere/", url],
        data__archives=[
            {"path": archive.path, "size": archive.size, "md5": archive.md5} for archive in archives
        ],
        weights__base_url=url,
    )
    result = project.repro("validate_data", "fetch_weights")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((project.path / "data/dataset/manifest.json").read_text())
    assert (manifest["num_train_images"], manifest["num_val_images"]) == num_images
    assert (project.path / "weights/small/backbone.pth").read_text() == "small"
    lock = json.loads((project.path / "pipelines/weights.lock.json").read_text())
    assert lock["DFvT_base_coco_pretrained.pth"]["size"] == 4

    again = project.repro("validate_data", "fetch_weights")
    assert again.returncode == 0, again.stderr
    assert "fetch_data: done" not in again.stderr, "nothing changed"

    (folder / "DFvT_base_coco_pretrained.pth").write_bytes(b"evil")
    (project.path / ".dfvt/downloads/DFvT_base_coco_pretrained.pth").unlink()
    result = project.repro("--force", "fetch_weights")
    assert result.returncode != 0
    assert "its sha256 is" in result.stderr

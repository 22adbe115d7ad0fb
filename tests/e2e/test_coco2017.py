"""`dvc repro` with profile coco2017, from a server on this machine to validated data."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dfvt.data.shapes import generate_shapes
from tests.conftest import Project
from tests.unit.test_coco2017 import pack

pytestmark = pytest.mark.e2e


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


def test_coco_is_fetched_unpacked_and_validated(
    project: Project, served: tuple[Path, str], tmp_path: Path
) -> None:
    folder, url = served
    generate_shapes(tmp_path / "shapes", num_train=20, num_val=10, height=64, width=80)
    archives = pack(tmp_path / "shapes", folder)
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
    assert (manifest["num_train_images"], manifest["num_val_images"]) == (20, 10)
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

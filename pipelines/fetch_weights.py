"""Stage fetch_weights: the ImageNet-pretrained backbones, if any, in one folder a variant."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

from dfvt.data.download import Download, fetch_all
from dfvt.data.progress import Bars
from dfvt.data.trusted import Fingerprint, note_fingerprint, read_fingerprints
from dfvt.settings import VARIANTS, Settings
from pipelines.stage import DOWNLOADS, run_stage

WEIGHTS = Path("weights")
LOCK = Path("pipelines/weights.lock.json")


def main(settings: Settings) -> None:
    fetched: dict[str, Path] = fetch_backbones(settings) if settings.use_pretrained else {}
    for variant in VARIANTS:
        folder = WEIGHTS / variant
        folder.mkdir(parents=True, exist_ok=True)
        if variant in fetched:
            shutil.copyfile(fetched[variant], folder / "backbone.pth")
        source = {"backbone": fetched[variant].name if variant in fetched else None}
        (folder / "source.json").write_text(json.dumps(source) + "\n", encoding="utf-8")


def fetch_backbones(settings: Settings) -> dict[str, Path]:
    """The backbones' files, kept outside of what DVC removes before a stage.

    Raises:
        ValueError: one cannot be had, or is another than the one that was fetched first.
    """
    known = read_fingerprints(LOCK)
    downloads = {}
    for variant in VARIANTS:
        name = f"DFvT_{variant}_coco_pretrained.pth"
        urls = tuple(urljoin(url, name) for url in settings.weights.base_url)
        before = known.get(name, Fingerprint(0, ""))
        downloads[variant] = Download(urls, DOWNLOADS / name, before.size or None, before.checksum or None)
    try:
        with Bars("B") as bars:
            say = partial(print, "fetch_weights:", file=sys.stderr, flush=True)
            checksums = fetch_all(list(downloads.values()), on_progress=bars, say=say)
    except ValueError as error:
        raise ValueError(
            f"{error}: correct weights.base_url, remove the file's entry in {LOCK} if another one is right, "
            "or set weights.pretrained to false to train from random weights."
        ) from error
    for download, checksum in zip(downloads.values(), checksums, strict=True):
        if download.checksum is None:
            fingerprint = Fingerprint(download.target.stat().st_size, checksum)
            note_fingerprint(LOCK, download.target.name, fingerprint)
    return {variant: download.target for variant, download in downloads.items()}


if __name__ == "__main__":
    run_stage("fetch_weights", main)

"""Stage fetch_weights: the ImageNet-pretrained backbones, if any, in one folder a variant."""

import json
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urljoin

from dfvt.settings import VARIANTS, Settings
from pipelines.stage import run_stage

WEIGHTS = Path("weights")


def main(settings: Settings) -> None:
    for variant in VARIANTS:
        folder = WEIGHTS / variant
        folder.mkdir(parents=True, exist_ok=True)
        url = None
        if settings.use_pretrained:
            from torch.hub import download_url_to_file

            url = urljoin(settings.weights.base_url, f"DFvT_{variant}_coco_pretrained.pth")
            try:
                download_url_to_file(url, str(folder / "backbone.pth"))
            except (URLError, OSError) as error:
                raise ValueError(
                    f"{url} cannot be fetched ({error}): correct weights.base_url, or set "
                    "weights.pretrained to false to train from random weights."
                ) from error
        (folder / "source.json").write_text(json.dumps({"backbone": url}) + "\n")


if __name__ == "__main__":
    run_stage("fetch_weights", main)

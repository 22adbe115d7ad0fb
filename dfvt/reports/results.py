"""The written report: our detectors beside the published table, from the files that the stages left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, create_model

from dfvt.data.manifest import DataReference, DatasetManifest
from dfvt.reports.published import COUNTED_INPUT_SHAPE, PUBLISHED, SOURCE
from dfvt.reports.tables import UNDEFINED, markdown_table, require_output, shown_map

FIGURES = {
    "predictions.png": "Predictions on validation images",
    "learning_curves.png": "Learning curves",
    "precision_recall.png": "Precision and recall at IoU 0.5",
    "per_class_ap.png": "AP per class",
    "errors.png": "What errors cost",
}

AP_SUFFIXES = ("", "_50", "_75", "_s", "_m", "_l")
AP_KEYS = {kind: [f"{kind}_mAP{suffix}" for suffix in AP_SUFFIXES] for kind in ("bbox", "segm")}
# A fraction, or null where it is undefined; earlier versions wrote COCO's −1 there.
_AP: Any = Annotated[float | None, Field(ge=-1, le=1)]
# A detector without masks has no `segm` numbers, files of earlier versions do not name their data.
_fields: dict[str, Any] = dict.fromkeys(AP_KEYS["bbox"], (_AP, ...))
_fields |= dict.fromkeys(AP_KEYS["segm"], (_AP, None)) | {"data": (DataReference | None, None)}
Evaluation = create_model("Evaluation", **_fields)
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Complexity:
    """Size of one detector: parameters, and multiply-adds at an input of (height, width) pixels."""

    num_params: PositiveInt
    backbone_params: PositiveInt
    flops: PositiveInt
    input_shape: tuple[PositiveInt, PositiveInt]


@dataclass(frozen=True)
class Run:
    """Where one training came from: its MLflow run and the tags that its lineage was recorded under."""

    mlflow_run_id: str
    tags: dict[str, str]


@dataclass(frozen=True)
class DetectorResult:
    """One row of the report; `bbox` and `segm` hold the six COCO numbers in the order of `AP_KEYS`."""

    variant: str
    bbox: tuple[float | None, ...]
    segm: tuple[float | None, ...]
    complexity: Complexity
    run: Run


def read_results(project: Path, variants: Sequence[str], dataset: DatasetManifest) -> list[DetectorResult]:
    """Read what `profile`, `train` and `evaluate` measured of each variant.

    Reads `metrics/profile.json`, `metrics/evaluate_<variant>.json` and `runs/<variant>/run.json`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it does not hold what its stage writes, or its numbers are of another data set.
    """
    profile = project / "metrics/profile.json"
    complexities = _read(profile, "profile", dict[str, Complexity])
    results = []
    for variant in variants:
        if variant not in complexities:
            raise ValueError(f"{profile} has no entry {variant!r}: run `dvc repro -f profile`")
        evaluation = project / f"metrics/evaluate_{variant}.json"
        values = _read(evaluation, f"evaluate@{variant}", Evaluation).model_dump()
        current = dataset.reference.model_dump()
        if values["data"] not in (None, current):
            other = values["data"]
            raise ValueError(
                f"{evaluation} is of another data set ({other['name']}, hash {other['hash']}): "
                f"run `dvc repro evaluate@{variant}`"
            )
        results.append(
            DetectorResult(
                variant=variant,
                bbox=tuple(values[key] for key in AP_KEYS["bbox"]),
                segm=tuple(values[key] for key in AP_KEYS["segm"]),
                complexity=complexities[variant],
                run=_read(project / f"runs/{variant}/run.json", f"train@{variant}", Run),
            )
        )
    return results


def write_results(
    project: Path, *, title: str, profile: str, dataset: DatasetManifest, variants: Sequence[str]
) -> Path:
    """Write `<project>/reports/results.md`, which shows those of `FIGURES` that lie in `reports/figures`.

    Args:
        project: folder with `metrics`, `runs` and `reports`.
        title: heading of the report.
        profile: name of the profile in `params.yaml`.
        dataset: the manifest of the data that the detectors were trained and evaluated on.
        variants: detectors in the order of the rows.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: a file is missing; ValueError: it does not hold what its stage writes.
    """
    results = read_results(project, variants, dataset)
    report = project / "reports/results.md"
    sections = [
        f"# {title}",
        *_caveat(dataset),
        _provenance(profile, dataset),
        "## Accuracy",
        "COCO mAP, a fraction of 0 to 1 (IoU 0.50:0.95, up to 100 detections an image); "
        f"{UNDEFINED} marks a value that is undefined. "
        f"Published: COCO val2017, 1x schedule, {SOURCE}.",
        _accuracy_table(results),
        *_figures(report, "predictions.png"),
        "## Size",
        "FLOPs are multiply-adds of one forward of the whole detector, ours at the input (height, width) of "
        "the table. Published sizes are given as the paper prints them and as the published code counts to: "
        f"FLOPs at {_shape(COUNTED_INPUT_SHAPE)}, in brackets with the products inside attention.",
        _size_table(results),
        "## Training",
        *_figures(report, "learning_curves.png"),
        "## In detail",
        "AP, a fraction: over IoU 0.50:0.95, at IoU 0.50 and 0.75, of small, medium and large objects.",
        _detail_table(results),
        *_figures(report, "precision_recall.png", "per_class_ap.png", "errors.png"),
        "## Runs",
        _run_table(results),
    ]
    partial = report.with_name(f".{report.name}.part")
    partial.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    partial.replace(report)
    return report


def _read(path: Path, stage: str, kind: type[Parsed]) -> Parsed:
    try:
        return TypeAdapter(kind).validate_json(require_output(path, stage).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        anew = f"run `dvc repro -f {stage}` to write it anew"
        raise ValueError(f"{path} is malformed ({reason}): {anew}") from error


def _caveat(dataset: DatasetManifest) -> list[str]:
    if dataset.generated:
        reason = (
            "mAP here is of generated data, images of simple shapes, and with narrow heads and small images; "
            "these make params and FLOPs smaller too."
        )
    elif dataset.name != "coco2017":
        reason = f"mAP here is of another data set (`{dataset.name}`); the published one is of COCO val2017."
    else:
        return []
    return [f"> **Not comparable with the published results:** {reason}"]


def _provenance(profile: str, dataset: DatasetManifest) -> str:
    return (
        f"Profile `{profile}`. Data set `{dataset.name}`: {dataset.num_train_images:,} training and "
        f"{dataset.num_val_images:,} validation images, hash `{dataset.reference.hash}`."
    )


def _accuracy_table(results: Sequence[DetectorResult]) -> str:
    rows = []
    for result in results:
        published = PUBLISHED[result.variant]
        box, mask = shown_map(result.bbox[0]), shown_map(result.segm[0])
        rows.append([published.name, box, shown_map(published.bbox_map), mask, shown_map(published.segm_map)])
    header = ["detector", "box mAP, ours", "box mAP, published", "mask mAP, ours", "mask mAP, published"]
    return markdown_table(header, rows)


def _size_table(results: Sequence[DetectorResult]) -> str:
    header = ["detector", "params, ours", "of these backbone", "params, published", "params, counted"]
    header += ["input, ours", "FLOPs, ours", "FLOPs, published", "FLOPs, counted"]
    rows = []
    for result in results:
        published, ours = PUBLISHED[result.variant], result.complexity
        rows.append(
            [
                published.name,
                f"{ours.num_params:,}",
                f"{ours.backbone_params:,}",
                published.params_printed,
                f"{published.params_counted:,}",
                _shape(ours.input_shape),
                _giga(ours.flops),
                published.flops_printed,
                f"{_giga(published.flops_counted)} ({_giga(published.flops_counted_with_attention)})",
            ]
        )
    return markdown_table(header, rows)


def _detail_table(results: Sequence[DetectorResult]) -> str:
    names = ("AP", "AP50", "AP75", "APS", "APM", "APL")
    rows = [
        [PUBLISHED[result.variant].name, kind, *(shown_map(value) for value in values)]
        for result in results
        for kind, values in (("box", result.bbox), ("mask", result.segm))
        if any(value is not None for value in values)
    ]
    return markdown_table(["detector", "of", *names], rows, text_columns=2)


def _run_table(results: Sequence[DetectorResult]) -> str:
    rows = []
    for result in results:
        tags = result.run.tags
        changed = " with changes" if tags.get("git.dirty") == "true" else ""
        rows.append(
            [
                PUBLISHED[result.variant].name,
                f"[config.py](../runs/{result.variant}/config.py)",
                f"`{tags.get('config.hash', UNDEFINED)[:12]}`",
                f"`{tags.get('git.commit', UNDEFINED)[:12]}`{changed}",
                f"`{result.run.mlflow_run_id}`",
            ]
        )
    return markdown_table(
        ["detector", "config", "config hash", "git commit", "MLflow run"], rows, text_columns=5
    )


def _figures(report: Path, *names: str) -> list[str]:
    """The figures that were drawn; the stage has said why another one was not."""
    there = [name for name in names if (report.parent / "figures" / name).is_file()]
    return [f"![{FIGURES[name]}](figures/{name})" for name in there]


def _giga(flops: float) -> str:
    return f"{flops / 1e9:.2f}G"


def _shape(shape: tuple[int, int]) -> str:
    return f"{shape[0]}\N{MULTIPLICATION SIGN}{shape[1]}"

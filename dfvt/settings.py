"""The experiment's settings: params.yaml as typed, validated, immutable values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

Profile = Literal["mini", "custom", "coco2017"]
Variant = Literal["tiny", "small", "base"]
ColorType = Literal[
    "color", "grayscale", "unchanged", "color_ignore_orientation", "grayscale_ignore_orientation"
]
PROFILES: tuple[Profile, ...] = get_args(Profile)
VARIANTS: tuple[Variant, ...] = get_args(Variant)
# What other programs call a key of ours; letters in common would not lead from one to the other.
SYNONYMS = {
    **dict.fromkeys(("learning_rate", "base_lr", "lr0", "initial_lr"), "lr"),
    **dict.fromkeys(("epochs", "max_epochs", "n_epochs", "num_train_epochs", "total_epochs"), "num_epochs"),
    **dict.fromkeys(
        ("bs", "batch", "samples_per_gpu", "imgs_per_gpu", "per_device_train_batch_size"), "batch_size"
    ),
    **dict.fromkeys(("random_seed", "random_state", "manual_seed"), "seed"),
    **dict.fromkeys(("gpu", "cuda", "device"), "use_gpu"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc_per_node", "workers", "world_size"), "num_workers"),
    **dict.fromkeys(("n_trials", "num_trials", "trials", "max_evals"), "num_samples"),
    **dict.fromkeys(("concurrency", "n_jobs", "max_parallel", "max_concurrent"), "max_concurrent_trials"),
    **dict.fromkeys(("search_space", "param_space", "parameters", "params"), "space"),
    **dict.fromkeys(("search_alg", "searcher", "sampler", "method"), "algorithm"),
    **dict.fromkeys(("pruner", "early_stopping", "early_terminate"), "scheduler"),
    **dict.fromkeys(("direction", "goal"), "mode"),
    **dict.fromkeys(("objective", "monitor", "target"), "metric"),
    **dict.fromkeys(("models", "variant", "detectors"), "variants"),
    **dict.fromkeys(("overrides", "options", "config"), "cfg_options"),
}


def _not_empty(value: object) -> object:
    if value == "":  # Path("") would silently be the current folder
        raise ValueError("is empty")
    return value


def _relative(path: Path) -> Path:
    if path.is_absolute():
        raise ValueError("is absolute")
    return path


def _as_folder_url(url: str) -> str:
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "file" else parts.netloc
    if parts.scheme not in ("http", "https", "file") or not place:
        raise ValueError("is no http, https or file address")
    return url if url.endswith("/") else f"{url}/"


def _dotted(options: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Flatten nested mappings, as `dvc exp run -S` writes them, so that options merge key by key."""
    flat: dict[str, JsonValue] = {}
    for key, value in options.items():
        if not all(key.split(".")) or any(character.isspace() for character in key):
            raise ValueError(f"has the key {key!r}")
        if isinstance(value, dict) and value:
            flat |= {f"{key}.{inner}": leaf for inner, leaf in _dotted(value).items()}
        else:
            flat[key] = value
    return flat


Document = TypeVar("Document", bound=BaseModel)

# A field's description says what is allowed there: error messages quote it after "must be".
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
FolderPath = Annotated[Path, BeforeValidator(_not_empty), Field(strict=False)]
RelativePath = Annotated[
    FolderPath, AfterValidator(_relative), Field(description="a path relative to data.root")
]
FolderUrl = Annotated[
    Text,
    AfterValidator(_as_folder_url),
    Field(description="the http://, https:// or file:// address of a folder"),
]
FolderUrls = Annotated[
    tuple[FolderUrl, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(
        min_length=1,
        strict=False,
        description="the http://, https:// or file:// address of a folder, or a list of such: the next one "
        "counts when one fails",
    ),
]
LearningRate = Annotated[
    float | None,
    Field(gt=0, allow_inf_nan=False, description="a number above 0, or null for the config's own"),
]
OptionalCount = Annotated[
    int | None, Field(ge=1, description="a whole number of at least 1, or null for the config's own")
]
Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
Seed = Annotated[int, Field(ge=0, lt=2**32, description="a whole number from 0 to 4294967295")]
ImageSide = Annotated[int, Field(ge=32, description="a whole number of at least 32 (pixels)")]
Switch = Annotated[Literal["auto"] | bool, Field(description="one of auto, true, false")]
CfgOptions = Annotated[
    Mapping[str, JsonValue],
    AfterValidator(_dotted),
    Field(
        description="a mapping of dotted config keys to plain values, as {model.backbone.drop_path_rate: 0.2}"
    ),
]


def _longer_first(sides: tuple[int, int]) -> tuple[int, int]:
    if sides[0] < sides[1]:
        raise ValueError("whose shorter side is the first")
    return sides


ImageSize = Annotated[
    Annotated[tuple[ImageSide, ImageSide], AfterValidator(_longer_first)] | None,
    Field(
        strict=False,
        description="a list of two whole numbers of at least 32 (pixels), the longer side first, as "
        "[1333, 800], or null for the config's own",
    ),
]


class Section(BaseModel):
    """A part of a settings file: immutable, without coercion, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShapesSettings(Section):
    """Size of the generated data set of profile mini; height and width in pixels."""

    seed: Seed = 0
    num_train: Count = 220
    num_val: Count = 80
    height: ImageSide = 128
    width: ImageSide = 160


class ArchiveSettings(Section):
    """An archive instead of one of COCO's."""

    path: RelativePath = Field(description="a path below data.base_url")
    size: Count = Field(description="its bytes")
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = Field(
        description="its MD5, 32 hexadecimal digits"
    )


class DataSettings(Section):
    """Where the images and annotations are; annotation and image paths are relative to `root`."""

    root: FolderPath = Field(default=Path("data/source"), description="the path of a folder in COCO layout")
    train_annotations: RelativePath = Path("annotations/instances_train2017.json")
    train_images: RelativePath = Path("train2017")
    val_annotations: RelativePath = Path("annotations/instances_val2017.json")
    val_images: RelativePath = Path("val2017")
    base_url: FolderUrls = ("http://images.cocodataset.org/",)
    archives: tuple[ArchiveSettings, ...] | None = Field(
        default=None, strict=False, description="a list of archives below base_url, or null for COCO's own"
    )
    keep_archives: bool = Field(default=False, description="true to keep archives once they are unpacked")
    shapes: ShapesSettings = Field(default=ShapesSettings(), description="a mapping")


class ValidationSettings(Section):
    """How thoroughly the images are checked."""

    decode_images: bool = Field(default=True, description="true, or false to read the images' headers alone")
    color_type: ColorType = Field(default="color", description=f"one of {', '.join(get_args(ColorType))}")


class WeightsSettings(Section):
    """Where the published weights are downloaded from, and whether trainings start from them."""

    base_url: FolderUrls = ("https://github.com/ginobilinie/DFvT/releases/download/Detection/",)
    pretrained: Switch = "auto"


class VariantOverrides(Section):
    """What one variant trains with instead of the common values; null keeps the common value."""

    lr: LearningRate = None
    num_epochs: OptionalCount = None
    batch_size: OptionalCount = None
    cfg_options: CfgOptions = {}


class TrialDefaults(VariantOverrides):
    """What params.yaml trains one variant with where a sweep does not say it."""

    image_size: ImageSize = None


class VariantsSettings(Section):
    """Overrides for each variant."""

    tiny: VariantOverrides = Field(default=VariantOverrides(), description="a mapping")
    small: VariantOverrides = Field(default=VariantOverrides(), description="a mapping")
    base: VariantOverrides = Field(default=VariantOverrides(), description="a mapping")


class VariantTrainSettings(Section):
    """What one variant trains with; None means the config's own value."""

    variant: Variant
    seed: Seed
    lr: LearningRate
    num_epochs: OptionalCount
    batch_size: OptionalCount
    image_size: ImageSize
    num_workers: Count
    use_gpu: Switch
    cfg_options: CfgOptions


class TrainSettings(Section):
    """Training: values common to the variants, and overrides of each.

    `batch_size` is images per worker. `image_size` is the box (longer side, shorter side) that images are
    scaled to fit into, in training, validation and prediction; the stage `profile` sets it in the configs.
    """

    seed: Seed = 0
    lr: LearningRate = None
    num_epochs: OptionalCount = None
    batch_size: OptionalCount = None
    image_size: ImageSize = None
    num_workers: Count = 1
    use_gpu: Switch = "auto"
    cfg_options: CfgOptions = {}
    variants: VariantsSettings = Field(
        default=VariantsSettings(), description="a mapping of variants to values"
    )

    def for_variant(self, variant: str) -> VariantTrainSettings:
        """Merge the overrides of `variant` over the common values; cfg_options are merged key by key.

        Raises ValueError for an unknown variant.
        """
        known = _known_variant(variant)
        common, own = self, getattr(self.variants, known)
        return VariantTrainSettings(
            variant=known,
            seed=common.seed,
            lr=common.lr if own.lr is None else own.lr,
            num_epochs=common.num_epochs if own.num_epochs is None else own.num_epochs,
            batch_size=common.batch_size if own.batch_size is None else own.batch_size,
            image_size=common.image_size,
            num_workers=common.num_workers,
            use_gpu=common.use_gpu,
            cfg_options={**common.cfg_options, **own.cfg_options},
        )


class EvaluateSettings(Section):
    """Which predictions the gallery draws."""

    score_threshold: float = Field(default=0.5, ge=0, le=1, description="a number from 0 to 1")
    num_gallery_images: int = Field(default=4, ge=0, description="a whole number of at least 0")


class TrackingSettings(Section):
    """Where the runs are filed."""

    experiment: Text = Field(default="dfvt", max_length=500, description="a name of 1 to 500 characters")
    required: bool = Field(default=True, description="true or false")
    upload_changes: Switch = "auto"


class ReportSettings(Section):
    """How the report looks."""

    title: Text = Field(default="DFvT detectors", description="a text that is not empty")


class Settings(Section):
    """All of params.yaml."""

    profile: Profile = Field(description=f"one of {', '.join(PROFILES)}")
    configs: FolderPath | None = Field(
        default=None, description="the path of a folder of detector configs, or null for the profile's own"
    )
    data: DataSettings = Field(default=DataSettings(), description="a mapping")
    validation: ValidationSettings = Field(default=ValidationSettings(), description="a mapping")
    weights: WeightsSettings = Field(default=WeightsSettings(), description="a mapping")
    train: TrainSettings = Field(default=TrainSettings(), description="a mapping")
    evaluate: EvaluateSettings = Field(default=EvaluateSettings(), description="a mapping")
    tracking: TrackingSettings = Field(default=TrackingSettings(), description="a mapping")
    report: ReportSettings = Field(default=ReportSettings(), description="a mapping")

    @property
    def use_pretrained(self) -> bool:
        """Whether trainings start from the pretrained backbones; `auto` does so except for profile mini."""
        return self.profile != "mini" if self.weights.pretrained == "auto" else self.weights.pretrained

    def config_path(self, variant: str) -> Path:
        """The detector config of `variant`, relative to the project unless `configs` is absolute.

        Raises ValueError for an unknown variant, or when the folder `configs` has none or several for it, or
        lies outside the project's configs/, where DVC would not notice that it changes.
        """
        known = _known_variant(variant)
        if self.configs is None:
            if self.profile == "mini":
                return Path(f"configs/mini/maskrcnn_DFvT_{known}_mini.py")
            return Path(f"configs/DFvT/maskrcnn_DFvT_{known}_1x_coco.py")
        if not self.configs.absolute().is_relative_to(Path("configs").absolute()):
            raise ValueError(
                f"configs: the folder {self.configs} must lie in configs/, where DVC looks for changes."
            )
        pattern = f"maskrcnn_DFvT_{known}_*.py"
        matches = sorted(self.configs.glob(pattern))
        if len(matches) != 1:
            found = ", ".join(match.name for match in matches) or "none"
            raise ValueError(
                f"configs: the folder {self.configs} must hold exactly one {pattern}, but has {found}."
            )
        return matches[0]


def load_settings(path: Path = Path("params.yaml")) -> Settings:
    """Read and validate a params.yaml; keys that are absent get their defaults, except `profile`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one sentence, the first thing that is wrong and what is allowed there.
    """
    settings = read_yaml(path, Settings)
    if settings.profile == "custom" and "root" not in settings.data.model_fields_set:
        raise ValueError(f"{path}: data.root is missing; profile custom needs it, the path of your data set.")
    return settings


def read_yaml(path: Path, kind: type[Document]) -> Document:
    """Read and validate a YAML file of settings.

    The file is read as DVC reads it (YAML 1.2: `2e-4` is a number, a repeated key is an error).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one sentence, the first thing that is wrong and what is allowed there.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; run from the project's folder or give the path of one."
        )
    try:
        document = YAML(typ="safe").load(path.read_bytes())
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(
            f"{path}{line}: not valid YAML, {_one_line(error.problem or error.context)}."
        ) from error
    except (YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML, {_one_line(error)}.") from error
    if document is not None and not isinstance(document, dict):
        required = next(name for name, field in kind.model_fields.items() if field.is_required())
        raise ValueError(f"{path}: holds {_shown(document)}, but must be a mapping with the key {required}.")
    try:
        return kind.model_validate(document or {})
    except ValidationError as error:
        # A value that fits none of a union's types is reported once for each type: count it once.
        first, *others = dict.fromkeys(_explain(details, kind) for details in error.errors())
        more = f" (and {len(others)} more such)" if others else ""
        raise ValueError(f"{path}: {first}{more}.") from error


def _known_variant(variant: str) -> Variant:
    for known in VARIANTS:
        if variant == known:
            return known
    raise ValueError(f"unknown variant {variant!r}; it must be one of {', '.join(VARIANTS)}.")


def _explain(error: ErrorDetails, kind: type[BaseModel]) -> str:
    """Say what is wrong with one value, quoting the description of the field that it was given for."""
    section = kind
    key, allowed = "", ""
    for place, part in enumerate(error["loc"]):
        key = f"{key}.{part}".lstrip(".")
        if isinstance(part, int):  # an entry of a list of sections
            continue
        field = section.model_fields.get(str(part))
        if field is None:
            valid = list(section.model_fields)
            synonym = SYNONYMS.get(str(part))
            nearest = difflib.get_close_matches(str(part), valid, n=1, cutoff=0.5)
            nearest = [synonym] if synonym in valid else nearest
            meant = f" (did you mean {nearest[0]}?)" if nearest else ""
            return f"{key} is an unknown key{meant}, valid here are {', '.join(valid)}"
        allowed = field.description or ""
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            entries = _section_of_entries(field.annotation)
            if entries and len(error["loc"]) > place + 2:
                section = entries
                continue
            described = _description_of_values(field.annotation)
            if described and error["loc"][place + 1 :]:
                key, allowed = f"{key}.{error['loc'][place + 1]}", described
            break
        section = field.annotation
    if error["type"] == "missing" and not isinstance(error["loc"][-1], int):  # else a list is short
        return f"{key} is missing, it must be {allowed}"
    reason = str(error.get("ctx", {}).get("error", ""))
    which = f", {reason}," if reason.startswith("whose ") else ","
    return f"{key} is {_shown(error['input'])}{which} but must be {allowed}"


def _section_of_entries(annotation: object) -> type[BaseModel] | None:
    """The section that each entry of a list is, if it is a list of such."""
    for inner in get_args(annotation):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
        found = _section_of_entries(inner)
        if found:
            return found
    return None


def _description_of_values(annotation: object) -> str | None:
    """The description that the values of a mapping have, if any."""
    *_, values = get_args(annotation) or (None,)
    metadata = getattr(values, "__metadata__", ())
    return next((field.description for field in metadata if isinstance(field, FieldInfo)), None)


def _shown(value: object) -> str:
    scalar = not isinstance(value, dict | list)
    text = json.dumps(value, default=str, ensure_ascii=False) if scalar else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split()).rstrip(".")

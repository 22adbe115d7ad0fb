"""A sweep's spec: what is searched, how, and with which resources, as typed, validated values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import (
    BeforeValidator,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from dfvt.settings import (
    SYNONYMS,
    VARIANTS,
    CfgOptions,
    Count,
    FolderPath,
    ImageSize,
    LearningRate,
    OptionalCount,
    Profile,
    Section,
    Seed,
    Switch,
    Text,
    Variant,
    read_yaml,
)

Kind = Literal["grid", "choice", "uniform", "loguniform", "randint"]
Algorithm = Literal["grid", "random", "optuna", "hyperopt", "nevergrad", "ax", "bohb"]
Scheduler = Literal["none", "asha", "hyperband", "median", "bohb", "pbt", "pb2"]
DRAWN: tuple[Algorithm, ...] = ("grid", "random")  # all trials are known before the first one starts
POPULATION: tuple[Scheduler, ...] = ("pbt", "pb2")  # they change what trials train with in the middle
TRAIN_KEYS = ("seed", "lr", "num_epochs", "batch_size")  # others of a space are keys of the config
IMAGE_SIZE = "image_size"  # but this, which changes many of them
RANGES: tuple[Kind, ...] = ("uniform", "loguniform", "randint")
Assignment = Mapping[str, JsonValue]  # one value for each key that a trial sets


@dataclass(frozen=True)
class Domain:
    """The values of one key: a list (`grid`, `choice`) or the two ends of a range.

    `randint` takes whole numbers from the lower end up to, and without, the upper one, as Ray Tune does.
    `when` holds other keys and the values at which this one counts; elsewhere the config's own value stays.
    """

    kind: Kind
    values: tuple[JsonValue, ...]
    when: Mapping[str, tuple[JsonValue, ...]]

    def active(self, assignment: Assignment) -> bool:
        return all(assignment.get(key) in values for key, values in self.when.items())

    def draw(self, rng: np.random.Generator) -> JsonValue:
        """One value at random."""
        if self.kind in RANGES:
            low, high = (float(end) for end in self.values)  # type: ignore[arg-type]  # checked: numbers
            if self.kind == "randint":
                return int(rng.integers(int(low), int(high)))
            if self.kind == "uniform":
                return float(rng.uniform(low, high))
            return float(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self.values[int(rng.integers(len(self.values)))]


def _as_domain(value: object) -> Domain:
    """`{choice: [1, 2]}`, with `when: {key: value}` beside it if need be; ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError("is no mapping")
    content = dict(value)
    conditions = content.pop("when", {})
    if len(content) != 1 or not isinstance(conditions, dict):
        raise ValueError("names no kind of domain, or several")
    ((kind, values),) = content.items()
    if kind not in get_args(Kind) or not isinstance(values, list):
        raise ValueError("is no known kind of domain with a list")
    if not values:
        raise ValueError("whose list is empty")
    if kind in RANGES:
        numbers = [number for number in values if isinstance(number, int | float) and math.isfinite(number)]
        whole = kind != "randint" or all(isinstance(number, int) for number in numbers)
        if len(values) != 2 or len(numbers) != 2 or not whole:
            raise ValueError("is no range")
        if numbers[0] >= numbers[1]:
            raise ValueError("whose lower end is not below the upper one")
        if kind == "loguniform" and numbers[0] <= 0:
            raise ValueError("whose lower end is not above 0")
    when = {
        str(key): tuple(wanted) if isinstance(wanted, list) else (wanted,)
        for key, wanted in conditions.items()
    }
    return Domain(kind, tuple(values), when)


SpaceDomain = Annotated[
    Domain,
    BeforeValidator(_as_domain),
    Field(
        description="one of {choice: […]}, {grid: […]}, {uniform: [low, high]}, {loguniform: [low, high]} "
        "with low > 0, {randint: [low, high]} without high, and beside it, if need be, "
        "when: {other.key: value}"
    ),
]


class SweepSpec(Section):
    """All of a sweep's YAML file."""

    name: Annotated[Text, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="a name of letters, digits, '.', '_' and '-': the sweep's folder and MLflow tag"
    )
    profile: Profile | None = Field(
        default=None, description="one of mini, custom, coco2017, or null for that of params.yaml"
    )
    configs: FolderPath | None = Field(
        default=None, description="the path of a folder of detector configs, or null for the profile's own"
    )
    variants: tuple[Variant, ...] = Field(
        default=("tiny",), min_length=1, strict=False, description=f"a list of {', '.join(VARIANTS)}"
    )
    space: Mapping[str, SpaceDomain] = Field(
        default={},
        description="a mapping of keys (seed, lr, num_epochs, batch_size, image_size, or any of a config) to "
        "domains",
    )
    algorithm: Algorithm = Field(default="random", description=f"one of {', '.join(get_args(Algorithm))}")
    scheduler: Scheduler = Field(default="none", description=f"one of {', '.join(get_args(Scheduler))}")
    scheduler_options: Mapping[str, JsonValue] = Field(
        default={}, description="a mapping of arguments of Ray Tune's scheduler"
    )
    num_samples: Count = 1
    max_concurrent_trials: OptionalCount = None
    metric: Text = Field(default="bbox_mAP", description="the name of a validation metric")
    mode: Literal["max", "min"] = Field(default="max", description="one of max, min")
    seed: Seed = 0
    lr: LearningRate = None
    num_epochs: OptionalCount = None
    batch_size: OptionalCount = None
    image_size: ImageSize = None
    cfg_options: CfgOptions = {}  # noqa: RUF012  (pydantic copies it)
    num_workers: Count = 1
    min_workers: OptionalCount = None
    use_gpu: Switch = "auto"
    cpus_per_worker: Count = 1
    resources_per_worker: Mapping[Text, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="a mapping of resources that the cluster's nodes declare to numbers above 0"
    )
    data_root: FolderPath | None = Field(
        default=None, description="the path of a node's own folder of the data set, or null for where it is"
    )
    data_source: Text | None = Field(
        default=None, description="a path or address that nodes copy the data set from, or null"
    )
    storage: Annotated[Text, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://[^@?]+(\?.*)?$")] | None = (
        Field(
            default=None,
            description="an address such as s3://bucket/sweeps, without a key or password (they belong "
            "into the environment), or null for .dfvt/sweeps",
        )
    )
    autoscaling: bool = Field(
        default=False, description="true where the cluster makes nodes for what waits, or false"
    )
    max_failures: int = Field(default=3, ge=0, description="a whole number of at least 0")
    trial_seconds: float | None = Field(
        default=None, gt=0, description="the most seconds that a trial may take, or null"
    )
    budget_gpu_hours: float | None = Field(
        default=None, gt=0, description="the most GPU-hours (CPU-hours without GPUs) of all trials, or null"
    )
    images_per_second: float | None = Field(
        default=None, gt=0, description="what one worker trains, for --plan, or null"
    )


def problem_of(spec: SweepSpec) -> str | None:
    """What contradicts itself in a spec whose single values are right."""
    kinds = {key: domain.kind for key, domain in spec.space.items()}
    if spec.algorithm == "grid":
        drawn = [key for key, kind in kinds.items() if kind != "grid"]
        if drawn:
            return f"algorithm grid takes grid domains alone, but space.{drawn[0]} is {kinds[drawn[0]]}"
    elif spec.algorithm != "random":
        grids = [key for key, kind in kinds.items() if kind == "grid"]
        if grids:
            return (
                f"algorithm {spec.algorithm} chooses its trials, "
                f"space.{grids[0]} cannot be a grid: write choice"
            )
        if not spec.space:
            return f"algorithm {spec.algorithm} needs a space to search"
    if spec.min_workers and spec.min_workers > spec.num_workers:
        return f"min_workers {spec.min_workers} is more than num_workers {spec.num_workers}"
    if spec.autoscaling and spec.min_workers:
        return "min_workers is for clusters that do not grow: remove it, or autoscaling"
    if spec.autoscaling and (spec.use_gpu == "auto" or not spec.max_concurrent_trials):
        return (
            "autoscaling needs use_gpu true or false, and max_concurrent_trials: nodes to come do not count"
        )
    if (spec.algorithm == "bohb") != (spec.scheduler == "bohb"):
        return "BOHB is a search and its scheduler: write algorithm: bohb and scheduler: bohb"
    if spec.scheduler in POPULATION:
        problem = population_problem_of(spec)
        if problem:
            return problem
    return space_problem_of(spec)


def space_problem_of(spec: SweepSpec) -> str | None:
    """Say what is wrong with a key, a value or a condition of a spec's space."""
    for key in TRAIN_KEYS:
        whole = int if key != "lr" else int | float
        values = spec.space[key].values if key in spec.space else ()
        if not all(isinstance(value, whole) and value > (-1 if key == "seed" else 0) for value in values):
            return f"space.{key} must hold {'numbers above 0' if key == 'lr' else 'whole numbers'}"
        if key != "lr" and key in spec.space and spec.space[key].kind in ("uniform", "loguniform"):
            return f"space.{key} must hold whole numbers: write randint"
    for value in spec.space[IMAGE_SIZE].values if IMAGE_SIZE in spec.space else ():
        try:
            TypeAdapter(ImageSize).validate_python(value, strict=False)
        except ValidationError:
            return f"space.{IMAGE_SIZE} must hold pairs of pixels, the longer side first, as [1333, 800]"
    for key in spec.space:
        if SYNONYMS.get(key) in TRAIN_KEYS:
            return f"space.{key} is an unknown key (did you mean {SYNONYMS[key]}?)"
        near = difflib.get_close_matches(key, (*TRAIN_KEYS, IMAGE_SIZE), n=1, cutoff=0.75)
        if near and near[0] != key:
            return f"space.{key} is an unknown key (did you mean {near[0]}?)"
    if "variant" in spec.space:
        return "space.variant is given by variants: [tiny, …]"
    for key, domain in spec.space.items():
        for other in domain.when:
            if other not in spec.space or other == key:
                return f"space.{key} depends on {other}, which is no other key of the space"
            if spec.space[other].when:
                return (
                    f"space.{key} depends on {other}, which depends on another key itself: one level is all"
                )
            listed = spec.space[other]
            never = [value for value in domain.when[other] if value not in listed.values]
            if listed.kind not in RANGES and never:
                return (
                    f"space.{key} counts at {other}: {never[0]}, which is not among its values "
                    f"{', '.join(map(str, listed.values))}"
                )
    return None


def population_problem_of(spec: SweepSpec) -> str | None:
    """What a scheduler cannot do that hands the state of one trial to another and changes its values."""
    name = f"scheduler {spec.scheduler}"
    if spec.algorithm not in DRAWN:
        return f"{name} searches itself: write algorithm: random"
    if not spec.space:
        return f"{name} needs a space to search"
    if len(spec.variants) > 1:
        return f"{name} takes a single variant: whose state could another one take over?"
    if num_trials_of(spec) < 2:
        return f"{name} needs at least two trials that differ: raise num_samples"
    for key, domain in spec.space.items():
        if (key in (*TRAIN_KEYS, IMAGE_SIZE) and key != "lr") or key.endswith("type"):
            return f"space.{key} cannot change in the middle of a training, as {name} would have it"
        if domain.when:
            return f"space.{key} has conditions, which {name} does not know"
        if spec.scheduler == "pb2" and domain.kind not in RANGES:
            return (
                f"{name} takes ranges alone (uniform, loguniform, randint), but space.{key} is {domain.kind}"
            )
    return None


def load_spec(path: Path) -> SweepSpec:
    """Reads and validates a sweep's file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: in one sentence, the first thing that is wrong and what is allowed there.
    """
    spec = read_yaml(path, SweepSpec)
    problem = problem_of(spec)
    if problem:
        raise ValueError(f"{path}: {problem}.")
    return spec


def active_part(space: Mapping[str, Domain], assignment: Assignment) -> dict[str, JsonValue]:
    """An assignment without the keys whose conditions it does not meet."""
    return {
        key: value for key, value in assignment.items() if key not in space or space[key].active(assignment)
    }


def draw_trials(spec: SweepSpec) -> list[dict[str, JsonValue]]:
    """All trials of a grid or random search, the same for the same spec: `variant` and what it sets.

    Every combination of the variants and of the grids' values, `num_samples` times with other draws of the
    other domains; what differs in keys that do not count is one trial.
    """
    assert spec.algorithm in DRAWN
    rng = np.random.default_rng(spec.seed)
    grids = {"variant": spec.variants} | {
        key: domain.values for key, domain in spec.space.items() if domain.kind == "grid"
    }
    trials: dict[str, dict[str, JsonValue]] = {}
    for _, *values in product(range(spec.num_samples), *grids.values()):
        assignment: dict[str, JsonValue] = dict(zip(grids, values, strict=True))
        assignment |= {key: domain.draw(rng) for key, domain in spec.space.items() if domain.kind != "grid"}
        trial = active_part(spec.space, assignment)
        trials.setdefault(repr(sorted(trial.items())), trial)
    return list(trials.values())


def num_draws(spec: SweepSpec) -> int:
    """How many trials a grid or random search draws, those that are alike counted each."""
    grids = [len(domain.values) for domain in spec.space.values() if domain.kind == "grid"]
    return spec.num_samples * len(spec.variants) * math.prod(grids) if spec.algorithm in DRAWN else 0


def num_trials_of(spec: SweepSpec) -> int:
    """How many trials the sweep has."""
    return len(draw_trials(spec)) if spec.algorithm in DRAWN else spec.num_samples


def examples_of_models(spec: SweepSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each value of a key of the model, the ends of a range, an assignment that has it, and its name."""
    first = {key: domain.values[0] for key, domain in spec.space.items()}
    for variant in spec.variants:
        for key, domain in spec.space.items():
            if key.startswith("model."):
                met = {other: wanted[0] for other, wanted in domain.when.items()}
                values = (domain.values[0],) if domain.kind == "randint" else domain.values
                for value in values:
                    assignment = {"variant": variant, **first, **met, key: value}
                    yield f"{key}: {value}", active_part(spec.space, assignment)


def examples(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    """For each variant, assignments in which every key counts at least once: to check the keys."""
    first = {key: domain.values[0] for key, domain in spec.space.items()}
    for variant in spec.variants:
        for conditions in [{}, *(domain.when for domain in spec.space.values() if domain.when)]:
            met = {key: wanted[0] for key, wanted in conditions.items()}
            yield active_part(spec.space, {"variant": variant, **first, **met})

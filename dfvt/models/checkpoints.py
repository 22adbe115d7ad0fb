"""Reading checkpoint files safely: nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What checkpoints hold beside tensors: NumPy scalars, also under the module names of NumPy 1, and the configs
# of Swin-like and mmcv trainings, which become an OrderedDict because torch fills no other type of mapping.
NUMPY_FUNCTIONS: list[Any] = [value.__reduce__()[0] for value in (np.float64(0), np.zeros(0))]
SAFE_TYPES: list[Any] = [
    np.dtype,
    np.ndarray,
    *NUMPY_FUNCTIONS,
    *((function, f"numpy.core.multiarray.{function.__name__}") for function in NUMPY_FUNCTIONS),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"},
    (OrderedDict, "yacs.config.CfgNode"),
    (OrderedDict, "mmcv.utils.config.ConfigDict"),
    argparse.Namespace,
]

DETECTOR_ONLY = ("norm0.", "norm1.", "norm2.", "norm3.", "conv1x1layers.")
DERIVED = ("num_batches_tracked", "relative_position_index")
# Embedding width, depths and MLP ratio.
VARIANTS: dict[tuple[int, tuple[int, ...], int], str] = {
    (48, (1, 1, 2, 1), 4): "DFvT-T",
    (96, (1, 1, 2, 1), 2): "DFvT-S",
    (128, (2, 2, 6, 2), 2): "DFvT-B",
}


def read_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a PyTorch checkpoint file, read with `weights_only`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is truncated, not a checkpoint, or holds objects that would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} {'is no file' if path.exists() else 'does not exist'}")
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # damaged bytes raise whatever the unpickler stumbles over
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"PK" and start[:1] != pickle.PROTO:
            raise ValueError(f"{path} is not a PyTorch checkpoint") from error
        if not isinstance(error, pickle.UnpicklingError):
            raise ValueError(f"checkpoint {path} is truncated or damaged: {first_sentence(error)}") from error
        raise ValueError(
            f"checkpoint {path} is not a plain PyTorch checkpoint and was not loaded: {refusal(error)}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def refusal(error: pickle.UnpicklingError) -> str:
    """Why `weights_only` refused a file; torch buries the name in a page of advice to load it unsafely."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    return f"it holds {name[1]}, which may run code" if name else "it is damaged or of another format"


def first_sentence(error: BaseException) -> str:
    """The first line of an exception's text, without its advice."""
    return str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__


def state_dict_of(content: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The weights in a checkpoint's content without `state_dict`/`model` wrappers, `module.` and `prefix`."""
    wrapped: dict[str, Any] | None = content
    while wrapped is not None:
        content = wrapped
        inner = (content.get(wrapper) for wrapper in ("state_dict", "model"))
        wrapped = next((value for value in inner if isinstance(value, dict)), None)
    entries = {
        name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)
    }
    if prefix and any(name.startswith(prefix) for name in entries):
        return {
            name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)
        }
    return entries


def load_backbone(backbone: nn.Module, path: str | Path) -> None:
    """Fills a backbone from the checkpoint of a pretrained classifier or of a whole detector.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no checkpoint or does not fit (another variant's file, say); nothing is filled.
    """
    weights = state_dict_of(read_checkpoint(path), "backbone.")
    expected = backbone.state_dict()
    # An ImageNet classifier has a head, and neither output norms nor fusions: they belong to the detector.
    optional = {name for name in expected if name.startswith(DETECTOR_ONLY) or name.endswith(DERIVED)}
    # A shallower backbone would take a deeper one's weights in part: attention that has no place is a misfit.
    extras = {n for n in weights if n not in expected and not n.endswith(".attn.qkv.weight")}
    require_fit(
        {name: value for name, value in expected.items() if name in weights or name not in optional},
        {name: value for name, value in weights.items() if name not in extras},
        path,
    )
    backbone.load_state_dict({k: v for k, v in weights.items() if k in expected}, strict=False)


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Fills a whole detector, entry by entry; returns what else the file says (`CLASSES`, …).

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no checkpoint or does not fit; nothing is filled.
    """
    content = read_checkpoint(path)
    weights, expected = state_dict_of(content), model.state_dict()
    require_fit(expected, weights, path)
    model.load_state_dict(weights, strict=True)
    meta = content.get("meta")
    return meta if isinstance(meta, dict) else {}


def load_fitting_weights(model: nn.Module, path: str | Path) -> str:
    """Fills a detector from one of other classes: those of its last layers that have another shape stay.

    Returns a sentence that names what stayed, empty when nothing did.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is no checkpoint, of another variant, or does not fit but for that; nothing is filled.
    """
    weights, expected = state_dict_of(read_checkpoint(path)), model.state_dict()
    other = [
        name
        for name, value in expected.items()
        if name.startswith("roi_head.") and name in weights and weights[name].shape != value.shape
    ]
    fitting = {name: value for name, value in weights.items() if name not in other}
    require_fit({name: value for name, value in expected.items() if name not in other}, fitting, path)
    model.load_state_dict(fitting, strict=False)
    if not other:
        return ""
    return f"what has another shape in {path} starts anew: {', '.join(other)}"


def require_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Compares names and shapes of the entries that a model has with those of a file.

    Raises:
        ValueError: the file is of another variant, or entries are missing, have no place or another shape.
    """
    theirs, ours = variant_of(weights), variant_of(expected)
    if theirs and ours and theirs != ours:
        raise ValueError(f"checkpoint {path} is of {theirs}, but the config's detector is {ours}")
    missing = [name for name in expected if name not in weights]
    surplus = [name for name in weights if name not in expected]
    mismatched = [
        f"{name} {list(weights[name].shape)} instead of {list(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} of {len(expected)} entries {what} ({', '.join(names[:3] + ['…'] * (len(names) > 3))})"
        for names, what in (
            (mismatched, "have another shape"),
            (missing, "are missing"),
            (surplus, "of the file have no place"),
        )
        if names
    ]
    if problems:
        raise ValueError(f"checkpoint {path} does not fit the config's detector: {'; '.join(problems)}")


def variant_of(entries: Mapping[str, Tensor]) -> str | None:
    """`DFvT-T`, `-S` or `-B`, by width, depths and MLPs of a backbone or detector; None for another one."""
    entries = {name.removeprefix("backbone."): value for name, value in entries.items()}
    stem, mlp = entries.get("patch_embed.proj2.weight"), entries.get("layers.0.blocks.0.mlp.fc1.weight")
    if stem is None or mlp is None:
        return None
    blocks = [re.match(r"layers\.(\d)\.blocks\.\d+\.attn\.qkv\.weight$", name) for name in entries]
    depths = Counter(int(block[1]) for block in blocks if block)
    return VARIANTS.get((len(stem), tuple(depths[stage] for stage in range(4)), mlp.shape[0] // mlp.shape[1]))

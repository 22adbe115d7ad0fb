"""What a data set is: where it lies, its classes, and a hash of its content."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from dfvt.data.files import write_whole

HASH_LENGTH = 12  # characters of a hash that are shown


class DataReference(BaseModel):
    """What numbers say of the data set that they are of: its name, and the first characters of its hash."""

    name: str
    hash: str


class DatasetManifest(BaseModel):
    """Where a data set lies, its classes in the order of their category ids, and a hash of its content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["mini", "custom", "coco2017"]
    generated: bool
    root: Path
    train_annotations: Path  # this and the next three are relative to root
    train_images: Path
    val_annotations: Path
    val_images: Path
    classes: tuple[str, ...]
    data_hash: str
    num_train_images: int
    num_val_images: int

    @property
    def reference(self) -> DataReference:
        return DataReference(name=self.name, hash=self.data_hash[:HASH_LENGTH])

    @property
    def train_annotations_path(self) -> Path:
        return (self.root / self.train_annotations).absolute()

    @property
    def train_images_path(self) -> Path:
        return (self.root / self.train_images).absolute()

    @property
    def val_annotations_path(self) -> Path:
        return (self.root / self.val_annotations).absolute()

    @property
    def val_images_path(self) -> Path:
        return (self.root / self.val_images).absolute()

    @classmethod
    def load(cls, path: Path) -> DatasetManifest:
        """Read a manifest.

        Raises:
            FileNotFoundError: there is none at ``path``.
            ValueError: the file is no manifest.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run `dvc repro fetch_data`.")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            reason = " ".join(f"{place}: {first['msg']}".removeprefix(": ").split())
            raise ValueError(
                f"{path} is no data set manifest ({reason}): run `dvc repro --force fetch_data`."
            ) from error

    def save(self, path: Path) -> None:
        """Write the manifest as JSON; the file appears when it is complete."""
        write_whole(path, self.model_dump_json(indent=2) + "\n")

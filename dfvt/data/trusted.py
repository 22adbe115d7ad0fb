"""Files whose checksums nobody published: the first fetch is trusted, later ones must give the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dfvt.data.files import write_whole


@dataclass(frozen=True)
class Fingerprint:
    """Size in bytes and checksum of a file."""

    size: int
    checksum: str


def read_fingerprints(lock: Path) -> dict[str, Fingerprint]:
    """The files that were fetched before, by name.

    Raises:
        ValueError: the file is damaged.
    """
    if not lock.is_file():
        return {}
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
        return {name: Fingerprint(**entry) for name, entry in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{lock} is damaged ({error}): restore it with git") from error


def note_fingerprint(lock: Path, name: str, fingerprint: Fingerprint) -> None:
    """Adds a file; the lock file appears whole."""
    content = {**read_fingerprints(lock), name: fingerprint}
    text = json.dumps({key: asdict(content[key]) for key in sorted(content)}, indent=2) + "\n"
    write_whole(lock, text)

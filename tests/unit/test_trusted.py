"""What the first fetch found is what later ones must find."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfvt.data.trusted import Fingerprint, note_fingerprint, read_fingerprints


def test_fingerprints_are_kept_by_name(tmp_path: Path) -> None:
    lock = tmp_path / "weights.lock.json"
    assert read_fingerprints(lock) == {}
    note_fingerprint(lock, "b.pth", Fingerprint(2, "sha256:bb"))
    note_fingerprint(lock, "a.pth", Fingerprint(1, "sha256:aa"))
    assert list(read_fingerprints(lock).items()) == [
        ("a.pth", Fingerprint(1, "sha256:aa")),
        ("b.pth", Fingerprint(2, "sha256:bb")),
    ]


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}', '{"a": {"size": 1}}'])
def test_a_damaged_one_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock.json").write_text(text)
    with pytest.raises(ValueError, match=r"is damaged .* restore it with git"):
        read_fingerprints(tmp_path / "lock.json")

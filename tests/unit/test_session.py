"""A Ray that does not start is a sentence, and its sockets fit in the system's limit."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import ray

from dfvt.cluster import session
from dfvt.cluster.session import connect, ray_folder


@pytest.fixture
def long_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR as Slurm gives it: a path of 60 to 70 bytes."""
    folder = Path(tempfile.mkdtemp(dir="/tmp")) / ("slurm-job-12345678" + "x" * 30)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(session, "SHORT_FOLDERS", ["/nonexistent", str(folder.parent)])
    return folder


def test_a_ray_that_does_not_start_in_time_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: object) -> None:
        raise Exception(reason)

    monkeypatch.setattr(ray, "init", init)
    reason = "The current node timed out during startup. This could happen because some of the raylet failed"
    with pytest.raises(RuntimeError, match="Ray did not start in time") as caught:
        connect("local")
    assert "\n" not in str(caught.value)
    reason = "something else"
    with pytest.raises(Exception, match="something else") as other:
        connect("local")
    assert not isinstance(other.value, RuntimeError)


def test_sockets_go_to_a_short_folder_where_tmpdir_is_long(long_folder: Path) -> None:
    folder = ray_folder()
    assert folder == long_folder.parent / f"ray-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ray_folder() == folder, "the second Ray uses it too"


def test_where_paths_are_short_ray_chooses(monkeypatch: pytest.MonkeyPatch, long_folder: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert ray_folder() is None
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", "/scratch/12345")
    assert ray_folder() is None


def test_without_a_short_folder_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, long_folder: Path
) -> None:
    monkeypatch.setattr(session, "SHORT_FOLDERS", ["/nonexistent"])
    with pytest.raises(
        ValueError, match=r"too long for Ray's sockets .*: set RAY_TMPDIR to a folder .* 39 bytes"
    ):
        ray_folder()
    monkeypatch.setattr(tempfile, "tempdir", f"{long_folder}/{'y' * 30}")
    with pytest.raises(ValueError, match=r"too long for sockets .*: set TMPDIR to a folder .* 75 bytes"):
        ray_folder()


@pytest.mark.cluster
def test_a_local_ray_starts_where_tmpdir_is_long(long_folder: Path) -> None:
    connect("local")
    try:
        assert ray.is_initialized()
        assert list((long_folder.parent / f"ray-{os.getuid()}").glob("session_*/sockets/plasma_store"))
    finally:
        ray.shutdown()

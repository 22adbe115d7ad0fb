"""Folders at an address, on this machine's disk and in an S3 on loopback, and copies of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow.fs import LocalFileSystem

from dfvt.data import storage
from dfvt.data.storage import Mirror, StorageFolder, open_address
from tests.servers import s3_server


@pytest.fixture(params=["file", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StorageFolder]:
    if request.param == "file":
        yield StorageFolder((tmp_path / "there").as_uri())
        return
    with s3_server(request.getfixturevalue("monkeypatch")) as address:
        yield StorageFolder(address) / "there"


def test_a_file_comes_back_as_it_was(remote: StorageFolder, tmp_path: Path) -> None:
    source = tmp_path / "state.pth"
    source.write_bytes(bytes(range(256)) * 20_000)
    assert remote.files() == {} and remote.info("state.pth") is None and remote.read("state.pth") is None
    remote.put(source, "state.pth")
    (remote / "trials").write("1/trial.json", b"{}")
    assert set(remote.files()) == {"state.pth"}
    assert set(remote.files(recursive=True)) == {"state.pth", "trials/1/trial.json"}
    remote.fetch("state.pth", tmp_path / "deep/copy.pth")
    assert (tmp_path / "deep/copy.pth").read_bytes() == source.read_bytes()
    remote.remove("state.pth")
    remote.remove("state.pth")
    assert not remote.info("state.pth")
    with pytest.raises(FileNotFoundError):
        remote.fetch("state.pth", tmp_path / "deep/copy.pth")
    assert (tmp_path / "deep/copy.pth").read_bytes() == source.read_bytes(), "the old copy stays"


def test_a_part_never_passes_for_the_whole(remote: StorageFolder) -> None:
    with pytest.raises(RuntimeError), remote.replaced("state.pth") as out:
        out.write(b"half of it")
        raise RuntimeError("the disk broke")
    assert remote.files() == {}
    remote.write("state.pth", b"the whole of it")
    with pytest.raises(RuntimeError), remote.replaced("state.pth") as out:
        out.write(b"half of it")
        raise RuntimeError("the disk broke")
    assert remote.read("state.pth") == b"the whole of it", "what was there stays"
    assert set(remote.files()) == {"state.pth"}


def test_a_mirror_has_what_the_storage_has(remote: StorageFolder, tmp_path: Path) -> None:
    here, there = Mirror(tmp_path / "a", remote), Mirror(tmp_path / "b", remote)
    (here.folder / "trials/1").mkdir(parents=True)
    (here.folder / "spec.json").write_text("{}")
    (here / "trials/1").folder.joinpath("trial.json").write_text('{"epoch": 1}')
    here.put("spec.json", "missing.json", "trials/1/trial.json")
    there.folder.mkdir()
    (there.folder / "stale.json").touch()
    (there.folder / "kept.pth").touch()
    there.fetch("*.json", "trials/*/trial.json", recursive=True)
    assert (there.folder / "spec.json").read_text() == "{}"
    assert (there.folder / "trials/1/trial.json").read_text() == '{"epoch": 1}'
    assert not (there.folder / "stale.json").exists() and (there.folder / "kept.pth").exists()
    assert (there / "trials/1").has("trial.json") and not there.has("stale.json")
    there.remove("spec*.json")
    assert not here.has("spec.json")


def test_a_folder_that_all_see_is_left_alone(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    (tmp_path / "trial.json").touch()
    mirror.put("trial.json")
    mirror.fetch("*.json")
    assert mirror.has("trial.json")
    mirror.remove("trial.json")
    assert not mirror.has("trial.json")


@pytest.mark.parametrize("address", ["nonsense://bucket/folder", "ftp://"])
def test_what_is_no_address_is_one_sentence(address: str) -> None:
    with pytest.raises(ValueError, match=address) as raised:
        open_address(address)
    assert "\n" not in str(raised.value)


def test_names_come_before_the_options_of_an_address() -> None:
    folder = StorageFolder("s3://bucket/a?scheme=http&endpoint_override=localhost%3A900") / "b" / "c"
    assert folder.address == "s3://bucket/a/b/c?scheme=http&endpoint_override=localhost%3A900"
    assert (StorageFolder("s3://bucket") / "a").address == "s3://bucket/a"


def test_a_storage_that_nobody_answers_for_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    folder = StorageFolder(
        "s3://bucket/a?scheme=http&endpoint_override=127.0.0.1%3A9&region=us-east-1&request_timeout=1"
    )
    with pytest.raises(ValueError, match="s3://bucket/a") as raised:
        folder.write("a", b"b")
    assert "\n" not in str(raised.value)


def test_credentials_that_have_expired_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Storage:
        def __init__(self, credentials: str) -> None:
            opened.append(credentials)
            self.credentials = credentials

        def get_file_info(self, *arguments: object, **options: object) -> object:
            if self.credentials != valid:
                raise OSError("ExpiredToken")
            return LocalFileSystem().get_file_info(*arguments, **options)

    def from_uri(address: str) -> tuple[Storage, str]:
        return Storage(valid), address.removeprefix("s3:/")

    monkeypatch.setattr(storage, "FileSystem", SimpleNamespace(from_uri=from_uri))
    monkeypatch.setattr(storage.time, "monotonic", lambda: now)
    valid, now = "first", 1000.0
    folder = StorageFolder(f"s3:/{tmp_path}")
    (tmp_path / "state.pth").touch()
    assert folder.info("state.pth") and folder.info("state.pth")
    assert opened == ["first"], "one connection for many files"
    valid = "second"
    with pytest.raises(ValueError, match="ExpiredToken"):
        folder.info("state.pth")
    assert folder.info("state.pth"), "after an error"
    valid, now = "third", now + 2 * storage.KEPT_SECONDS
    assert folder.info("state.pth"), "after some minutes"
    assert opened == ["first", "second", "third"]

"""Sweeps in a storage: who runs one, and the copies that nodes train in."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from dfvt.cluster import heartbeat as heartbeats
from dfvt.cluster.heartbeat import HEARTBEAT, beat_of, beats, heartbeat, write_beat
from dfvt.cluster.population import ORIGIN, hand_over, take_over
from dfvt.cluster.records import TrialRecord, fetch_record, put_record
from dfvt.cluster.worker_folder import provide_weights, put_weights, working_copy
from dfvt.data.storage import Mirror, StorageFolder
from tests.unit.test_sweep_records import START


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StorageFolder:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(heartbeats, "SECONDS_BETWEEN_BEATS", 0.05)
    monkeypatch.setattr(heartbeats, "SILENCE_SECONDS", 2.0)
    return StorageFolder((tmp_path / "storage").as_uri()) / "sweep"


def test_one_runs_a_sweep_at_a_time(remote: StorageFolder) -> None:
    with heartbeat(remote):
        assert beats(remote)
        with pytest.raises(ValueError, match="is running already, on"), heartbeat(remote):
            pass
        assert beats(remote), "who was refused ends nobody's beats"
    assert not beats(remote)
    with heartbeat(remote):
        pass


def test_one_that_was_killed_keeps_nobody(
    remote: StorageFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeats, "SILENCE_SECONDS", 0.5)
    write_beat(remote, "killed", 17)
    with heartbeat(remote):
        assert beat_of(remote)["name"] != "killed"
    assert "still does" in capsys.readouterr().err


def test_a_second_beat_interrupts(remote: StorageFolder) -> None:
    interrupted = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        with heartbeat(remote):
            write_beat(remote, "another", 0)
            assert interrupted.wait(30)
        assert beat_of(remote)["name"] == "another"
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_storage_that_was_emptied_interrupts_nobody(remote: StorageFolder) -> None:
    with heartbeat(remote):
        remote.remove(HEARTBEAT)
        deadline = time.monotonic() + 30
        while not remote.info(HEARTBEAT):
            assert time.monotonic() < deadline


def test_a_copy_has_what_is_kept_and_gives_back_what_is_written(
    remote: StorageFolder, tmp_path: Path
) -> None:
    trial = remote / "trials/0001"
    trial.write("latest.pth", b"old")
    trial.write("curve.csv", b"step\n1\n")
    trial.write("trial.json", b"{}")
    with working_copy(tmp_path / "nowhere", trial, "first", pytest.fail, rank=0, local_rank=0) as copy:
        assert sorted(path.name for path in copy.folder.iterdir() if path.name[0] != ".") == [
            "curve.csv",
            "latest.pth",
        ]
        with working_copy(tmp_path / "nowhere", trial, "first", pytest.fail, rank=1, local_rank=1) as other:
            assert other.folder == copy.folder and not other.uploads
        (upload,) = copy.uploads
        upload.on_start(START)
        (copy.folder / "latest.pth").write_bytes(b"new")
        (copy.folder / "curve.csv").write_text("step\n1\n2\n")
        upload.on_checkpoint(copy.folder / "latest.pth", 2)
        (copy.folder / "checkpoint.pth").write_bytes(b"final")
        (copy.folder / "best.pth").write_bytes(b"best")
        upload.on_end(copy.folder / "checkpoint.pth")
        assert trial.read("checkpoint.pth") == b"final", "it is there before anybody hears of the end"
    kept = {name: trial.read(name) for name in trial.files()}
    assert kept == {
        "latest.pth": b"new",
        "curve.csv": b"step\n1\n2\n",
        "checkpoint.pth": b"final",
        "best.pth": b"best",
        "trial.json": b"{}",
    }
    assert not copy.folder.exists()
    assert not (tmp_path / "nowhere").exists()


def test_what_an_attempt_before_left_is_not_trusted(remote: StorageFolder, tmp_path: Path) -> None:
    trial = remote / "trials/0001"
    trial.write("latest.pth", b"kept")
    with working_copy(tmp_path, trial, "first", pytest.fail, rank=1, local_rank=1) as copy:
        (copy.folder / "latest.pth").write_bytes(b"of a trial that went on elsewhere meanwhile")
    with working_copy(tmp_path, trial, "second", pytest.fail, rank=1, local_rank=0) as copy:
        assert (copy.folder / "latest.pth").read_bytes() == b"kept"


def test_a_state_that_the_storage_does_not_take_ends_no_training(
    remote: StorageFolder, tmp_path: Path
) -> None:
    trial, said = remote / "trials/0001", list[str]()
    trial.write("trial.json", b"{}")
    with working_copy(tmp_path, trial, "first", said.append, rank=0, local_rank=0) as copy:
        storage = tmp_path / "storage/sweep/trials/0001"
        (storage / "trial.json").unlink()
        storage.rmdir()
        storage.touch()  # a file where the folder should be
        (upload,) = copy.uploads
        (copy.folder / "latest.pth").write_bytes(b"new")
        upload.on_checkpoint(copy.folder / "latest.pth", 1)
        with pytest.raises(ValueError, match="storage/sweep/trials/0001"):
            upload.on_end(copy.folder / "checkpoint.pth")
    assert said and all(line.endswith("the training goes on") for line in said)


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("a fault"), FileNotFoundError("gone")])
def test_a_failed_upload_of_any_kind_is_told_and_fails_the_end(
    remote: StorageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: StorageFolder, *_: object) -> None:
        raise error

    trial, said = remote / "trials/0001", list[str]()
    with working_copy(tmp_path, trial, "first", said.append, rank=0, local_rank=0) as copy:
        (upload,) = copy.uploads
        (copy.folder / "latest.pth").write_bytes(b"new")
        monkeypatch.setattr(StorageFolder, "put", fail)
        upload.on_checkpoint(copy.folder / "latest.pth", 1)
        with pytest.raises(type(error), match=str(error)):
            upload.on_end(copy.folder / "checkpoint.pth")
    assert said and all(str(error) in line and line.endswith("the training goes on") for line in said)


def test_a_state_that_makes_room_for_the_next_one_is_no_failure(
    remote: StorageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_room_first(source: Path, target: Path) -> None:
        source.unlink()
        raise FileNotFoundError(str(source))

    trial = remote / "trials/0001"
    with working_copy(tmp_path, trial, "first", pytest.fail, rank=0, local_rank=0) as copy:
        (upload,) = copy.uploads
        (copy.folder / "latest.pth").write_bytes(b"new")
        (copy.folder / "curve.csv").write_text("step\n")
        monkeypatch.setattr("os.link", make_room_first)
        upload.on_checkpoint(copy.folder / "latest.pth", 1)
    assert trial.read("curve.csv") == b"step\n"


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), RuntimeError("a fault")])
def test_a_beat_that_fails_in_any_way_is_told_and_the_next_one_comes(
    remote: StorageFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    write, failed, beaten = StorageFolder.write, threading.Event(), threading.Event()

    def write_once_away(self: StorageFolder, name: str, content: bytes) -> None:
        if threading.current_thread() is not threading.main_thread():
            if not failed.is_set():
                failed.set()
                raise error
            beaten.set()
        write(self, name, content)

    monkeypatch.setattr(StorageFolder, "write", write_once_away)
    with heartbeat(remote):
        assert beaten.wait(30)
    assert str(error) in capsys.readouterr().err


def test_a_training_that_keeps_no_state_gives_its_end(remote: StorageFolder, tmp_path: Path) -> None:
    trial = remote / "trials/0001"
    with working_copy(tmp_path, trial, "first", pytest.fail, rank=0, local_rank=0) as copy:
        (copy.folder / "checkpoint.pth").write_bytes(b"final")
        (upload,) = copy.uploads
        upload.on_end(copy.folder / "checkpoint.pth")
    assert set(trial.files()) == {"checkpoint.pth"}


def test_an_end_without_the_storage_is_the_end_all_the_same(
    remote: StorageFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(self: StorageFolder, name: str) -> bytes:
        raise ValueError("the storage is away")

    with heartbeat(remote):
        monkeypatch.setattr(StorageFolder, "read", away)
    assert "the storage is away" in capsys.readouterr().err


def test_without_a_storage_a_worker_trains_where_all_see_it(tmp_path: Path) -> None:
    with working_copy(tmp_path, None, "first", pytest.fail, rank=0, local_rank=0) as copy:
        assert copy.folder == tmp_path and not copy.uploads


def test_a_node_without_weights_gets_them_at_the_same_path(remote: StorageFolder, tmp_path: Path) -> None:
    from mmcv import Config

    weights = tmp_path / "weights/tiny/backbone.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    cfg = Config({"model": {"pretrained": str(weights)}})
    put_weights([cfg.pretty_text, "model = dict()"], remote)
    assert len(remote.files()) == 1
    weights.unlink()
    provide_weights(cfg, remote)
    assert weights.read_bytes() == b"weights"


def test_a_state_is_taken_over_through_the_storage(remote: StorageFolder, tmp_path: Path) -> None:
    better, worse = (Mirror(tmp_path / name, remote / name) for name in ("better", "worse"))
    put_record(TrialRecord("better", {"lr": 1.0}, "run1", epoch=2, metrics={"bbox_mAP": 0.5}), better)
    put_record(TrialRecord("worse", {"lr": 2.0}, "run2", epoch=2, metrics={"bbox_mAP": 0.1}), worse)
    for trial, content in ((better, b"good"), (worse, b"bad")):
        assert trial.remote
        trial.remote.write("latest.pth", content)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    hand_over(better, checkpoint)
    assert (checkpoint / ORIGIN).is_file()
    take_over(worse, checkpoint, {"lr": 1.2})
    elsewhere = Mirror(tmp_path / "other node", worse.remote)
    record = fetch_record(elsewhere)
    assert record and record.assignment == {"lr": 1.2} and record.taken_over[0].name == "better"
    assert worse.remote and worse.remote.read("taken_over.pth") == b"good"
    assert not worse.has("latest.pth")

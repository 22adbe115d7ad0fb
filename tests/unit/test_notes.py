"""What goes on later goes on in the MLflow run that was noted, unless the store has lost it."""

from __future__ import annotations

import json
from pathlib import Path

from dfvt.cluster.notes import continue_noted_run, note_run
from dfvt.tracking.mlflow import RunRecorder
from dfvt.tracking.store import Store


def open_run(uri: str, folder: Path) -> RunRecorder:
    return RunRecorder.open(uri, "notes", artifact_root=folder, run_name="first", tags={}, params={})


def test_a_noted_run_is_opened_again_in_its_own_store_alone(tmp_path: Path) -> None:
    said: list[str] = []
    uri, note = f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "not" / "there" / "run.json"
    assert continue_noted_run(note, uri, tmp_path, said.append) is None
    recorder = open_run(uri, tmp_path)
    recorder.finish("KILLED")
    note_run(note, recorder, Store(recorder.uri), tmp_path, tags={"data.hash": "1a2b"})
    assert json.loads(note.read_text())["tags"] == {"data.hash": "1a2b"}
    again = continue_noted_run(note, uri, tmp_path, said.append)
    assert again is not None
    assert again.run_id == recorder.run_id
    assert again._client.get_run(again.run_id).info.status == "RUNNING"
    assert continue_noted_run(note, f"sqlite:///{tmp_path / 'another.db'}", tmp_path, said.append) is None
    assert said == []
    again._client.delete_run(again.run_id)
    assert continue_noted_run(note, uri, tmp_path, said.append) is None
    assert len(said) == 1 and "is deleted" in said[0] and said[0].endswith("starting another run")

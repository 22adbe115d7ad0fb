"""A folder that a node does not see is refused before a trial fails on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfvt.cluster import nodes
from dfvt.cluster.nodes import Node, Unanswered, require_reached, require_shared
from dfvt.data.storage import StorageFolder

HERE, THERE = Node("here", 0), Node("there", 8)


@pytest.mark.parametrize("answer", [False, Unanswered("it died")])
def test_a_folder_that_not_all_nodes_see_is_refused(
    answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(work: Callable[[Node, Any], Any], argument: Any) -> dict[Node, Any]:
        return {HERE: work(HERE, argument), THERE: answer}

    monkeypatch.setattr(nodes, "on_each_node", elsewhere)
    with pytest.raises(ValueError, match="the node there does not see") as caught:
        require_shared(tmp_path / "sweeps/a", "the states go", "mount it")
    assert str(caught.value).endswith("where the states go: mount it")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "sweeps/a").iterdir()) == []


def test_a_folder_that_all_nodes_see_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nodes, "on_each_node", lambda work, argument: {node: work(node, argument) for node in (HERE, THERE)}
    )
    require_shared(tmp_path, "the states go", "mount it")


def test_a_storage_that_not_all_nodes_reach_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = StorageFolder(tmp_path.as_uri()) / "sweep"
    answers: dict[Node, object] = {HERE: None, THERE: None}
    monkeypatch.setattr(nodes, "on_each_node", lambda work, place: answers | {HERE: work(HERE, place)})
    require_reached(remote)
    for answer in ("no credentials", Unanswered("no credentials")):
        answers[THERE] = answer
        with pytest.raises(ValueError, match=r"the node there does not reach .* \(no credentials\)"):
            require_reached(remote)
    assert remote.files() == {}

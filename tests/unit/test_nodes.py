"""A folder that a node does not see is refused before a trial fails on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfvt.cluster import nodes
from dfvt.cluster.nodes import Node, Unanswered, require_shared

HERE, THERE = Node("here", 0), Node("there", 8)


@pytest.mark.parametrize("answer", [False, Unanswered("it died")])
def test_a_folder_that_not_all_nodes_see_is_refused(
    answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(work: Callable[[Node, Any], Any], argument: Any) -> dict[Node, Any]:
        return {HERE: work(HERE, argument), THERE: answer}

    monkeypatch.setattr(nodes, "on_each_node", elsewhere)
    with pytest.raises(ValueError, match="the node there does not see") as caught:
        require_shared(tmp_path / "sweeps/a")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "sweeps/a").iterdir()) == []


def test_a_folder_that_all_nodes_see_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        nodes, "on_each_node", lambda work, argument: {node: work(node, argument) for node in (HERE, THERE)}
    )
    require_shared(tmp_path)

"""Trainings on a cluster: the one that RAY_ADDRESS names, with several workers."""

from __future__ import annotations

import pytest

from tests.conftest import Project

pytestmark = [pytest.mark.e2e, pytest.mark.cluster]


def test_more_workers_than_gpus_is_one_sentence(prepared: Project) -> None:
    prepared.set_params(train__use_gpu=True)
    result = prepared.repro("train@tiny")
    assert result.returncode == 2
    assert "train.num_workers is 1 with train.use_gpu, but Ray has 0 GPUs" in result.stderr.splitlines()[-1]

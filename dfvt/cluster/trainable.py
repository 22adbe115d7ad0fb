"""A trial as Ray Tune knows it. Its process starts without torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import ray
from ray import tune
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.tune.result import DONE

from dfvt.cluster.interruption import may_begin
from dfvt.cluster.population import hand_over, take_over
from dfvt.cluster.records import TRIALS, Defaults, mirror_of
from dfvt.cluster.spaces import TRIAL
from dfvt.cluster.spec import DRAWN, POPULATION, Assignment, SweepSpec, draw_trials
from dfvt.data.manifest import DatasetManifest
from dfvt.data.storage import Mirror, StorageFolder
from dfvt.settings import TrialDefaults
from dfvt.tracking.addresses import URI
from dfvt.tracking.origin import Origin
from dfvt.tracking.store import Store

WEIGHTS = "weights"
Result = dict[str, Any]
Hand = Callable[[Result], None]
# A sweep, the trial's id of Tune, all that it was assigned, where validations go, and what ends it early.
RunTrial = Callable[["Sweep", str, Assignment, Hand, threading.Event], Result]


@dataclass(frozen=True)
class Sweep:
    """What every trial of a sweep needs to know.

    Attributes:
        spec: what was asked for.
        home: where its folder is unless it has a storage: a folder on a file system that every node sees.
        configs: for each variant the whole mmdet config as text.
        lineage: tags of every run; those of a trial come beside them.
        store, experiment, artifact_root: where the runs are filed.
        dataset: what nodes must have.
        origin: what the project was like when the sweep began, for the runs of its trials.
        parent_run_id: of the sweep's own run.
        tracking_required: whether it cannot begin while the store does not answer.
        segment: after how many epochs a training ends for the scheduler to compare it with the others.
        defaults: for each variant the values of `params.yaml` that its config has already.
    """

    spec: SweepSpec
    home: Path
    configs: Mapping[str, str]
    lineage: Mapping[str, str]
    store: Store
    experiment: str
    artifact_root: Path
    dataset: DatasetManifest
    segment: int | None = None
    origin: Origin | None = None
    parent_run_id: str | None = None
    tracking_required: bool = True
    defaults: Defaults = field(default_factory=dict)

    @property
    def tracking_uri(self) -> str:
        """The address of the store, with the credentials that the environment has for it."""
        return self.store.uri

    @property
    def mirror(self) -> Mirror:
        """Where its state and results are, as this process sees them."""
        return mirror_of(self.spec, self.home)

    @property
    def weights(self) -> StorageFolder | None:
        """Where the weights are that trials begin with, if the nodes share no folder."""
        remote = self.mirror.remote
        return remote and remote / WEIGHTS

    def defaults_of(self, variant: str) -> TrialDefaults:
        """Return what `params.yaml` trains a variant with."""
        return self.defaults.get(variant, TrialDefaults())

    def trial(self, trial_id: str, assignment: Assignment) -> Mirror:
        """Where a trial of Tune's is, given with all that it was assigned.

        Trials that are drawn have a number of their own, whatever Tune calls them: should Tune's state be
        lost with its process, they are found again. Those whose values a scheduler changes have none.
        """
        name = trial_id
        if self.spec.algorithm in DRAWN and self.spec.scheduler not in POPULATION:
            name = f"{draw_trials(self.spec).index(dict(assignment)) + 1:04}"
        return self.mirror / TRIALS / name


def plain_values(drawn: Mapping[str, Any]) -> Assignment:
    """What a searcher chose as values of Python: some choose NumPy's."""
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in drawn.items()}


class TrialTraining(tune.Trainable):
    """A trial as Ray Tune steps it, a validation a step; stopped early, it frees its workers first.

    Started again after a failure, it goes on in the same folder and MLflow run. Its process serves one trial
    after the other. `run` is what a trial does, `dfvt.cluster.trials.run_trial` unless a benchmark needs
    another. `tracking_uri` is MLFLOW_TRACKING_URI of the process that runs the sweep: its credentials are
    on no disk. When the sweep is interrupted (`trials_at_work` says so, as Ray Tune would have it wait for
    the present step), it writes its state and hands nothing more on.
    """

    def setup(  # type: ignore[override]  # with_parameters gives the others
        self,
        config: dict[str, Any],
        sweep: Sweep,
        trials_at_work: ActorHandle,
        run: RunTrial | None = None,
        tracking_uri: str | None = None,
    ) -> None:
        if tracking_uri:
            os.environ[URI] = tracking_uri
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before its import
        if run is None:
            from dfvt.cluster.trials import run_trial  # imports torch, which takes seconds

            run = run_trial
        self.sweep = sweep
        self.run_trial: RunTrial = run
        self.drawn = plain_values(config[TRIAL])
        self.thread: threading.Thread | None = None
        self.trials_at_work = trials_at_work
        self.stop_asked, self.interrupted = threading.Event(), threading.Event()
        threading.Thread(target=self.wait_for_interruption, daemon=True).start()

    def wait_for_interruption(self) -> None:
        with suppress(RayError):  # the sweep has ended
            ray.get(self.trials_at_work.wait_for_stop.remote())
            self.interrupted.set()
            self.stop_asked.set()

    def begin(self) -> threading.Thread:
        """Starts the trial, or the next segment of it."""
        self.results: SimpleQueue[Result | BaseException] = SimpleQueue()
        self.stop_asked = threading.Event()
        thread = threading.Thread(
            target=self.train_in_thread, args=(self.drawn, self.results, self.stop_asked), daemon=True
        )
        thread.start()
        return thread

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.drawn = plain_values(new_config[TRIAL])
        return True

    def train_in_thread(
        self, drawn: Assignment, results: SimpleQueue[Result | BaseException], stop: threading.Event
    ) -> None:
        try:
            if not may_begin(self.trials_at_work, self.trial_id):
                return
            # of a segment the last validation is all that the scheduler is to know
            hand_on = results.put if self.sweep.segment is None else lambda result: None
            result = {DONE: True, **self.run_trial(self.sweep, self.trial_id, drawn, hand_on, stop)}
            if result[DONE] or not self.interrupted.is_set():
                results.put(result)
        except BaseException as error:  # raised in step
            if not self.interrupted.is_set():
                results.put(error)
        finally:
            self.trials_at_work.end.remote(self.trial_id)

    def step(self) -> Result:
        """Waits for the next validation, the end of the segment, or that of the trial.

        After an interruption it waits until it is killed: Tune would take any answer for an end, or for a
        failure.
        """
        if self.thread is None:
            self.thread = self.begin()
        result = self.results.get()
        if isinstance(result, BaseException):
            raise result
        if self.sweep.segment is not None:
            self.thread.join()
            self.thread = None
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """What others may take over; a trial that is paused has its state in its own folder."""
        if self.sweep.segment is not None:
            hand_over(self.sweep.trial(self.trial_id, self.drawn), Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Takes over what another trial left; what this one left is in its folder."""
        if self.sweep.segment is not None:
            take_over(self.sweep.trial(self.trial_id, self.drawn), Path(checkpoint), self.drawn)

    def cleanup(self) -> None:
        if self.thread is not None:
            self.stop_asked.set()
            self.thread.join()
            self.thread = None

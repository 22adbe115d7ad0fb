"""How one trial takes over another's state: population based searches. Needs neither Ray nor torch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from dfvt.cluster.records import TakeOver, fetch_record, put_record
from dfvt.cluster.spec import Assignment
from dfvt.data.files import write_whole
from dfvt.data.storage import Mirror

STATES = "latest*.pth"
STATE, BEST = "latest.pth", "best.pth"
TAKEN_OVER = "taken_over.pth"  # what a trial begins from while it has no state of its own
ORIGIN = "origin.json"


def hand_over(trial: Mirror, checkpoint: Path) -> None:
    """Copies what another trial needs from a trial's folder into a folder of Tune's.

    The trial's training must have ended with a validation, or ended.
    """
    trial.fetch(STATE, BEST)
    record, folder = fetch_record(trial), trial.folder
    assert record, folder
    for name in (STATE, BEST):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, checkpoint / name)
    write_whole(
        checkpoint / ORIGIN,
        json.dumps({"name": record.name, "epoch": record.epoch, "metrics": record.metrics}),
    )


def take_over(trial: Mirror, checkpoint: Path, assignment: Assignment) -> None:
    """Puts another trial's state in place of a trial's own, to go on from it with the values of `assignment`.

    Nothing changes where the state is the trial's own, or was taken over before: then a failure made Tune
    start it again. Whatever moment it is killed at, called again it does the rest.
    """
    record, folder = fetch_record(trial), trial.folder
    origin = json.loads((checkpoint / ORIGIN).read_text(encoding="utf-8"))
    change = TakeOver(origin["name"], origin["epoch"], dict(assignment))
    if record is None or change.name == record.name or change in record.taken_over[-1:]:
        return
    for source, target in ((STATE, TAKEN_OVER), (BEST, BEST)):
        if (checkpoint / source).is_file():
            partial = folder / f".{target}.partial"
            shutil.copyfile(checkpoint / source, partial)
            partial.replace(folder / target)
    trial.put(TAKEN_OVER, BEST)
    trial.remove(STATES)
    record = replace(
        record, epoch=change.epoch, assignment=change.assignment, metrics=origin["metrics"]
    )  # the numbers of the state that it has now
    put_record(replace(record, taken_over=(*record.taken_over, change)), trial)

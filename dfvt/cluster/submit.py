"""A sweep as a job of a Ray cluster, which goes on when the machine that submitted it is closed."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from dfvt.cluster.records import HOME, LINEAGE
from dfvt.tracking.addresses import URI, without_credentials
from dfvt.tracking.lineage import git_lineage

ADDRESS = "RAY_API_SERVER_ADDRESS"
READY_SECONDS = 60.0


def submit_sweep(spec: Path, name: str, project: Path, home: Path) -> str:
    """Submits the project's code and a spec in it to the cluster at `RAY_API_SERVER_ADDRESS`.

    Nothing else is asked: what runs on this machine by chance is not meant. What `.rayignore` and
    `.gitignore` name is not uploaded: data, weights, runs and environments.

    Args:
        spec: the sweep's file, in `project`.
        name: of the sweep.
        project: the folder that is uploaded.
        home: the folder of the data set, the weights and the sweeps, on a file system of all nodes.

    Returns:
        The job's id.

    Raises:
        ValueError: no address is set, the spec is not in the project, no cluster answers, or it refuses.
    """
    if not (os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS")):
        raise ValueError(
            f"--submit needs a cluster: set {ADDRESS} to its dashboard's address, see the README"
        )
    try:
        inside = spec.resolve().relative_to(project.resolve())
    except ValueError:
        raise ValueError(f"{spec} is not in {project}, which is uploaded: copy it there") from None
    variables = {HOME: str(home), LINEAGE: json.dumps(git_lineage(project))}
    variables |= handed_on()
    try:
        return submit_when_ready(
            JobSubmissionClient(),
            entrypoint=f"python -m pipelines.sweep {shlex.quote(str(inside))}",
            submission_id=f"dfvt-{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            runtime_env={"working_dir": str(project), "env_vars": variables},
            metadata={"dfvt.sweep": name},
        )
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ValueError(f"the job server takes no sweep: {first_sentence(error)}") from error


def handed_on() -> dict[str, str]:
    """Return the address of MLflow's store for a job, without credentials.

    The cluster's dashboard shows a job's variables to everybody who may see it.
    """
    uri = os.environ.get(URI)
    if not uri:
        return {}
    shown = without_credentials(uri)
    if shown != uri:
        print(
            f"the job is given {shown} as {URI}, without user and password: set them on the cluster's nodes "
            "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, PGUSER and PGPASSWORD for PostgreSQL)",
            file=sys.stderr,
        )
    return {URI: shown}


def submit_when_ready(client: JobSubmissionClient, **job: Any) -> str:
    """Submits a job; a cluster that has just started says for a while that it has no agent for it.

    Raises:
        RuntimeError: it still says so after `READY_SECONDS`, or refuses for another reason.
    """
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)


def first_sentence(error: Exception) -> str:
    """What a cluster's refusal says, and what helps where it is known."""
    text = " ".join(str(error).split())
    if isinstance(error, AuthenticationError):
        return (
            "it wants a token, or another one: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's"
        )
    if isinstance(error, ConnectionError | RayError):
        reason = text[:200].rstrip(".")
        return f"{reason}: start the cluster, or set RAY_API_SERVER_ADDRESS to its dashboard's address"
    return text[:300]

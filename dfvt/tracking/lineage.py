"""Where a run comes from, as the tags that every MLflow run carries."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

NONE = "none"


def config_hash(text: str) -> str:
    """The sha256 of a config's text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def collect_lineage(
    project: Path,
    *,
    variant: str,
    profile: str,
    data_hash: str,
    config_hash: str,
    ray_job_id: str | None = None,
    ray_trial_id: str | None = None,
) -> dict[str, str]:
    """The lineage tags of a run of the project in the folder `project`; what does not exist is "none".

    `git.dirty` says whether tracked files differ from the commit. dvc.lock does not count there: DVC
    writes it during a run, and the tag `dvc.lock` holds its sha256.

    Raises ValueError, in git's own words, when there is a repository that git refuses to read.
    """
    lock = project / "dvc.lock"
    return {
        "dfvt.variant": variant,
        "dfvt.profile": profile,
        **git_lineage(project),
        "dvc.lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else NONE,
        "data.hash": data_hash,
        "config.hash": config_hash,
        "ray.job_id": ray_job_id or NONE,
        "ray.trial_id": ray_trial_id or NONE,
    }


def git_lineage(project: Path) -> dict[str, str]:
    """The commit of a project's folder, and whether tracked files differ from it."""
    commit = _git(project, "rev-parse", "--quiet", "--verify", "HEAD")
    changes = _git(
        project, "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude,glob)**/dvc.lock"
    )
    return {
        "git.commit": commit or NONE,
        "git.dirty": NONE if commit is None else str(bool(changes)).lower(),
    }


def git_diff(project: Path) -> str | None:
    """How tracked files, but for dvc.lock, differ from the commit; None without a difference or commit."""
    if _git(project, "rev-parse", "--quiet", "--verify", "HEAD") is None:
        return None
    changes = _git(project, "diff", "--no-ext-diff", "HEAD", "--", ".", ":(exclude,glob)**/dvc.lock")
    return f"{changes}\n" if changes else None


def _git(project: Path, *arguments: str) -> str | None:
    """What git prints; None without git, outside a repository, and for HEAD before the first commit."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=project,
            env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        if not project.is_dir():
            raise
        return None
    if result.returncode == 0:
        return result.stdout.strip()
    if result.returncode == 1 or "not a git repository" in result.stderr:
        return None
    reason = result.stderr.strip().partition("\n")[0]
    raise ValueError(f"git cannot read the repository of {project}: {reason}.")

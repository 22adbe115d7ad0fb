"""Where a run comes from, as the tags that every MLflow run carries."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

NONE = "none"
DIFF = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--binary")
STATUS = ("--porcelain", "--untracked-files=no")
TRACKED = (".", ":(exclude,glob)**/dvc.lock")  # DVC writes that file during a run


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
    """Return the commit of a project's folder, and whether tracked files differ from it, as tags."""
    commit = _git(project, "rev-parse", "--quiet", "--verify", "HEAD")
    return {
        "git.commit": NONE if commit is None else commit.decode().strip(),
        "git.dirty": NONE if commit is None else str(bool(git_changes(project))).lower(),
    }


def git_changes(project: Path) -> str | None:
    """Return the tracked files that differ from the commit, but for dvc.lock; None without a difference.

    Each line has git's letters for the kind of change, and the file's name. Bytes of a name that are not
    UTF-8 are shown as `\\xe9`.
    """
    changes = _git(project, "-c", "core.quotePath=false", "status", *STATUS, "--", *TRACKED)
    return changes.decode(errors="backslashreplace") if changes and changes.strip() else None


def git_diff(project: Path) -> bytes | None:
    """Return how tracked files, but for dvc.lock, differ from the commit; None if they do not.

    The files' own bytes are in it, whatever their encoding is, so that `git apply` takes it.
    """
    if _git(project, "rev-parse", "--quiet", "--verify", "HEAD") is None:
        return None
    return _git(project, *DIFF, "HEAD", "--", *TRACKED) or None


def _git(project: Path, *arguments: str) -> bytes | None:
    """Return what git prints; None without git, outside a repository, and for HEAD without a commit."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=project,
            env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        if not project.is_dir():
            raise
        return None
    errors = result.stderr.decode(errors="backslashreplace").strip()
    if result.returncode == 0:
        return result.stdout
    if result.returncode == 1 or "not a git repository" in errors:
        return None
    raise ValueError(f"git cannot read the repository of {project}: {errors.partition(chr(10))[0]}.")

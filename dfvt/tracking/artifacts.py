"""Artifacts of a project's own store, found again after the project was moved or copied."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dfvt.tracking.addresses import ARTIFACTS, STORE_FILE

# Where MLflow notes an absolute address of artifacts.
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
PROJECT_FILES = ("params.yaml", "dvc.yaml", ".dfvt")  # one of them lies beside a project's own store
SECONDS = 5.0  # that another process may keep the database locked


def artifacts_of(database: Path) -> Path | None:
    """Return the folder of the artifacts of a store that is a project's own, None for another store."""
    is_project = any((database.parent / name).exists() for name in PROJECT_FILES)
    if database.name != STORE_FILE or not is_project:
        return None
    return (database.parent / ARTIFACTS).absolute()


def relocate_artifacts(database: Path) -> None:
    """Let a project's own store name the folder `mlartifacts` beside it.

    MLflow notes absolute addresses. In a moved project they name a folder that is gone, in a copied one the
    folder of the first project. An address of a folder that exists is left alone unless the runs that are
    there are also in a store beside the folder: another project files its runs here then.

    Raises:
        ValueError: the database is locked or damaged.
    """
    own = artifacts_of(database)
    if own is None:
        return
    here = own.as_uri()
    try:
        with closing(sqlite3.connect(database, timeout=SECONDS)) as connection, connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if "experiments" not in tables:
                return
            roots = connection.execute(
                "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%'"
            ).fetchall()
            for (root,) in roots:
                if root == here or not is_former(root, own, connection):
                    continue
                for table, column in LOCATIONS:
                    if table in tables:
                        connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                            f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                            (here, len(root) + 1, root, len(root) + 1, f"{root}/"),
                        )
    except sqlite3.Error as error:
        raise ValueError(f"the MLflow store {database} cannot be used: {error}.") from error


def is_former(root: str, own: Path, connection: sqlite3.Connection) -> bool:
    """Tell whether an address of artifacts is where the store's own were before it was moved or copied.

    Args:
        root: the address.
        own: where they are now.
        connection: to the store's database.
    """
    there = Path(unquote(urlsplit(root).path))
    if there.name != ARTIFACTS:
        return False
    if not there.exists():
        return True
    if own.exists() and there.samefile(own):  # by another path, through a link
        return False
    database = there.parent / STORE_FILE
    if not database.exists():
        return False
    first = connection.execute(
        "SELECT run_uuid FROM runs WHERE substr(artifact_uri, 1, ?) = ? ORDER BY start_time LIMIT 1",
        (len(root) + 1, f"{root}/"),
    ).fetchone()
    if first is None:
        return True
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=SECONDS)) as another:
        tables = {name for (name,) in another.execute("SELECT name FROM sqlite_master")}
        if "runs" not in tables:  # an empty file: MLflow has not used it yet
            return False
        return bool(another.execute("SELECT 1 FROM runs WHERE run_uuid = ?", first).fetchone())

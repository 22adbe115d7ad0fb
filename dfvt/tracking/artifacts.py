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


def relocate_artifacts(database: Path) -> None:
    """Let a project's own store name the folder `mlartifacts` beside it.

    MLflow notes absolute addresses. In a moved project they name a folder that is gone, in a copied one the
    folder of the first project. An address of a folder that exists is left alone if there is no store beside
    the folder: another project files its runs here then.

    Raises:
        ValueError: the database is locked or damaged.
    """
    is_project = any((database.parent / name).exists() for name in PROJECT_FILES)
    if database.name != STORE_FILE or not is_project:
        return
    here = (database.parent / ARTIFACTS).absolute().as_uri()
    try:
        with closing(sqlite3.connect(database, timeout=SECONDS)) as connection, connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
            if "experiments" not in tables:
                return
            roots = connection.execute(
                "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file://%'"
            ).fetchall()
            for (root,) in roots:
                if root == here or not is_former(root, here):
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


def is_former(root: str, here: str) -> bool:
    """Tell whether an address of artifacts is where the store's own were before it was moved or copied."""
    there, own = (Path(unquote(urlsplit(address).path)) for address in (root, here))
    if there.name != ARTIFACTS:
        return False
    if not there.exists():
        return True
    if own.exists() and there.samefile(own):  # by another path, through a link
        return False
    return (there.parent / STORE_FILE).exists()

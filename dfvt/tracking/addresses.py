"""Addresses of MLflow stores: where a project's runs go, what a note says of that, and what may be shown.

Needs no MLflow.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

URI = "MLFLOW_TRACKING_URI"
SQLITE = "sqlite:///"
STORE_FILE, ARTIFACTS = "mlflow.db", "mlartifacts"  # a project's own store, and the folder of its artifacts
_TEMPORARY = (
    ".dvc",
    "tmp",
    "exps",
)  # `dvc exp run --temp` and `--queue` run in copies of the project in there
_SECRETS = r"user(?:name)?|pass(?:word|wd)?|pwd|(?:access_)?token|sslpassword|odbc_connect"
_SECRET_OPTION = re.compile(rf"([?&])(?:{_SECRETS})=[^&\s]*", re.IGNORECASE)


def home_of(project: Path) -> Path:
    """Return the folder that holds the store of a project.

    It is the project's own folder. In the temporary copy of an experiment of DVC's it is the folder of the
    project that was copied: DVC removes the copy afterwards.
    """
    parts = project.absolute().parts
    for start in range(len(parts) - len(_TEMPORARY)):
        if parts[start : start + len(_TEMPORARY)] == _TEMPORARY:
            return Path(*parts[:start])
    return project.absolute()


def tracking_uri(project: Path) -> str:
    """Return MLFLOW_TRACKING_URI, else the address of the project's `mlflow.db`.

    The path of an SQLite file is made absolute and without `..`, so that all processes use the same file and
    `is_inside` is right about it.

    Raises ValueError for a `project` whose path cannot be part of an SQLite address.
    """
    uri = os.environ.get(URI)
    if uri:
        file = uri.removeprefix(SQLITE)
        if not uri.startswith(SQLITE) or not file:
            return uri
        return f"{SQLITE}{os.path.normpath(home_of(Path()) / file)}"
    return own_store(project)


def own_store(project: Path) -> str:
    """Return the address of the project's `mlflow.db`. Raises as `tracking_uri` does."""
    home = home_of(project)
    if unusable := {"%", "?"}.intersection(str(home)):
        raise ValueError(
            f"{home}: an SQLite address cannot hold {' or '.join(sorted(unusable))}; "
            "rename the folder or set MLFLOW_TRACKING_URI."
        )
    return f"{SQLITE}{home / STORE_FILE}"


def artifact_root(project: Path) -> Path:
    """Return the folder of the project in which its own store keeps artifacts."""
    return home_of(project) / ARTIFACTS


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite address, None for the address of a server."""
    return Path(uri.partition("?")[0].removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def is_inside(uri: str, project: Path) -> bool:
    """Tell whether a store is a file in the project's folder."""
    database = database_of(uri)
    return database is not None and database.is_relative_to(home_of(project))


def noted_address(uri: str, project: Path) -> str:
    """Return a store's address as a note of the project holds it.

    The path of an SQLite file in the project is relative to the project, so that the note is right in a moved
    project and in a clone. The note holds no credentials: notes are outputs of DVC's stages, and are pushed.
    """
    if is_inside(uri, project):
        database = database_of(uri)
        assert database is not None
        return f"{SQLITE}{database.relative_to(home_of(project)).as_posix()}"
    return without_credentials(uri)


def address_of_note(noted: str, project: Path) -> str:
    """Return the address that the address in a note means in the project in the folder `project`.

    Credentials come from the environment. An absolute path of an SQLite file means the SQLite store that the
    environment names, else the project's own: earlier versions noted where the project's store was, and the
    project may have been moved or copied since.

    Raises:
        ValueError: as `tracking_uri`.
    """
    today = tracking_uri(project)
    database = database_of(noted)
    if database is None:
        same = without_credentials(noted) == without_credentials(today)
        return today if same else noted
    if not database.is_absolute():
        return f"{SQLITE}{home_of(project) / database}"
    return today if database_of(today) else own_store(project)


def without_credentials(uri: str) -> str:
    """Return an address without user, password and token."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme.partition("+")[0] == "sqlite":
        return uri
    address, question, options = rest.rpartition("@")[2].partition("?")
    kept = [one for one in options.split("&") if not _SECRET_OPTION.fullmatch(f"?{one}")]
    return f"{scheme}://{address}{question if any(kept) else ''}{'&'.join(kept)}"


def with_credentials(uri: str) -> str:
    """Return an address with the credentials that MLFLOW_TRACKING_URI has for it, if it has any."""
    given = os.environ.get(URI, "")
    return given if given and without_credentials(given) == uri else uri


def without_password(text: str) -> str:
    """Return an address, or a text with addresses in it, in which `***` stands for credentials."""
    hidden = re.sub(r"://[^\s'\"<>]*@", "://***@", text)
    return re.sub(rf"([?&](?:{_SECRETS})=)[^&\s]*", r"\1***", hidden, flags=re.IGNORECASE)

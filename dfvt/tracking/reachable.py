"""Whether a tracking store can be used, found out in seconds: MLflow itself would retry for minutes.

MLflow, which takes a second to import, is imported to ask a server.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from dfvt.tracking.addresses import SQLITE, without_password

_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SECONDS_TO_CONNECT = 5.0
_SECONDS_TO_ANSWER = 30  # a server that shares its processors with a training is slow
_QUESTION = "/api/2.0/mlflow/experiments/search?max_results=1"  # whoever may sign in may ask it
INVALID_HOST = "Invalid Host header"  # how MLflow's server begins its refusal of a host name
CORRECT_URI = "correct MLFLOW_TRACKING_URI, or unset it to use mlflow.db in the project"
SIGN_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"


def require_reachable(uri: str) -> None:
    """Check within seconds that a tracking store can be used.

    Raises ValueError for an unknown kind of address; a server that accepts no connection, is not MLflow's, or
    refuses the user or the host name; an SQLite file that is no database or cannot be written.
    """
    scheme = uri.partition(":")[0].partition("+")[0]
    problem: str | None = None
    remedy = CORRECT_URI
    if scheme == "sqlite":
        problem = _database_problem(uri)
    elif scheme in _DEFAULT_PORTS:
        problem = _connection_problem(uri, scheme)
        if problem is None and scheme in ("http", "https"):
            problem, remedy = _answer_problem(uri)
    elif scheme != "databricks":  # that is addressed through Databricks' own settings, which MLflow reads
        problem = "is none of http, https, sqlite, postgresql, mysql, mssql and databricks"
    if problem:
        raise ValueError(f"the MLflow store {without_password(uri)} {problem}; {remedy}.")


def host_remedy(uri: str) -> str:
    """Return what helps if MLflow's server refuses the host name of its address."""
    host = urlsplit(uri).netloc.rpartition("@")[2]
    return (
        f"start the server with --allowed-hosts {host} (a list with commas; it replaces the default), or use "
        "an address that the server allows"
    )


def is_json_object(text: str) -> bool:
    """Tell whether a text is a JSON object, as each answer of MLflow's is."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _database_problem(uri: str) -> str | None:
    file = uri.partition("?")[0].removeprefix(SQLITE)
    if not uri.startswith(SQLITE) or file in ("", ":memory:"):
        return "names no file"
    database = Path(file).absolute()
    if not database.parent.is_dir():
        return f"is in the folder {database.parent}, which does not exist"
    if not os.access(database if database.exists() else database.parent, os.W_OK):
        return "cannot be written"
    if database.exists():
        try:
            connection = sqlite3.connect(
                f"{database.as_uri()}?mode=ro", uri=True, timeout=_SECONDS_TO_CONNECT
            )
            with closing(connection):
                connection.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            return f"cannot be read ({error})"
    return None


def _connection_problem(uri: str, scheme: str) -> str | None:
    try:
        server = urlsplit(uri)
        host, port = server.hostname, server.port or _DEFAULT_PORTS[scheme]
        proxy = getproxies().get(scheme)
        if proxy and host and scheme in ("http", "https") and not proxy_bypass(host):
            server = urlsplit(proxy if "//" in proxy else f"//{proxy}")
            host, port = server.hostname, server.port or 80
    except ValueError as error:
        return f"is no valid address ({error})"
    if not host:
        return "names no host"

    outcome: list[str | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT).close()
            outcome.append(None)
        except (OSError, UnicodeError) as error:
            outcome.append(f"cannot be reached at {host}:{port} ({error})")

    # In a thread of its own, because no timeout reaches the look-up of a name.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_CONNECT)
    if not outcome:
        return f"does not answer at {host}:{port} within {_SECONDS_TO_CONNECT:.0f} s"
    return outcome[0]


def _answer_problem(uri: str) -> tuple[str | None, str]:
    """Return what is wrong with a server's answer to a small question, and what helps."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),
            _QUESTION,
            "GET",
            max_retries=0,
            timeout=_SECONDS_TO_ANSWER,
            raise_on_status=False,
        )
    except MlflowException as error:
        cause = error.__cause__ or error.__context__ or error
        reason = " ".join(without_password(str(cause)).split())[:200]
        return f"does not answer MLflow's questions ({reason})", CORRECT_URI
    if answer.status_code == 403 and INVALID_HOST in answer.text:
        return "refuses the host name of this address", host_remedy(uri)
    if answer.status_code in (401, 403):
        return f"refuses the user (HTTP status {answer.status_code})", SIGN_IN
    if answer.status_code in (500, 502, 503, 504):
        return f"does not work at present (HTTP status {answer.status_code})", "look at the server's log"
    if not is_json_object(answer.text):
        return (
            f"is not an MLflow server: its answer has the HTTP status {answer.status_code} and is not JSON",
            CORRECT_URI,
        )
    return None, CORRECT_URI

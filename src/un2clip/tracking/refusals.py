"""What is wrong with a store or its address, in one sentence that names the way out."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from un2clip.errors import UserError, reason, without_password
from un2clip.tracking import local

HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")


def check_address(uri: str) -> None:
    """Refuse what is hardly meant as MLFLOW_TRACKING_URI: a host and port alone, or a page of the UI.

    Raises:
        UserError: names the address to set instead.
    """
    if HOST_AND_PORT.fullmatch(uri):
        raise UserError(f"MLFLOW_TRACKING_URI has no http:// or https:// before it; set it to http://{uri}")
    try:
        parts = urlsplit(uri)
    except ValueError:  # such as an open bracket
        raise UserError("MLFLOW_TRACKING_URI is no address; set it to one such as http://localhost:5000") from None
    if parts.scheme in ("http", "https") and ("#" in uri or parts.query):
        server = parts._replace(path=parts.path.rstrip("/"), query="", fragment="").geturl()
        raise UserError(
            "MLFLOW_TRACKING_URI is the address of a page, as the browser shows it; set it to "
            f"{without_password(server)}"
        )


def deleted(experiment: str, number: str, uri: str) -> UserError:
    """For an experiment that was deleted in the UI, which keeps it."""
    return UserError(
        f"experiment {experiment} was deleted in MLflow, which keeps it; bring it back: "
        f"MLFLOW_TRACKING_URI={_as_typed(uri)} mlflow experiments restore --experiment-id {number}"
    )


def unusable(uri: str, error: BaseException) -> UserError:
    """For a store that does not answer, or not as it should."""
    path, said = local.file_of(uri), str(error)
    if found := re.search(r"found version (?!None)(\w+)|revision identified by '(\w+)'", said):
        return _other_schema(uri, found[1] or found[2], path)
    if path is not None and path.is_file() and local.half_made(path):
        return UserError(
            f"{path} is half made and holds no run, as an interrupted command leaves it; delete {path}, and run the "
            "same command again"
        )
    return UserError(
        f"MLflow at {without_password(uri)} cannot be used ({reason(error)}); start it, or unset "
        "MLFLOW_TRACKING_URI for a local mlflow.db, or set UN2CLIP_TRACKING=off"
    )


def _other_schema(uri: str, found: str, path: Path | None) -> UserError:
    """MLflow calls both out of date: a database that is older than it, and one that is newer."""
    import mlflow

    place = path or without_password(uri)
    versions = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    if any(versions.glob(f"{found}_*.py")):
        return UserError(
            f"{place} was written by an older MLflow than {mlflow.__version__}, which is here; keep a copy of it, then "
            f"`mlflow db upgrade {_as_typed(uri)}`"
        )
    return UserError(
        f"{place} was written by a newer MLflow (schema {found}) than {mlflow.__version__}, which is here; install "
        "that one, or set MLFLOW_TRACKING_URI to another store"
    )


def _as_typed(uri: str) -> str:
    """An address as a shell takes it, without its password; of a file in this folder its name."""
    if local.file_of(uri) == Path.cwd() / local.NAME:
        uri = f"{local.PREFIX}{local.NAME}"
    shown = without_password(uri)
    return shown if not set(shown) & set(" '\"$&;()*?") else f"'{shown}'"

"""How long MLflow is waited for: its own default is seven tries, four minutes in all, at every request."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

POD = "KUBERNETES_SERVICE_HOST"
TIMEOUT_S = 20  # seconds; of one request outside of a training's loop
TRIES, TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"

_guard = threading.Lock()
_open: list[dict[str, str]] = []  # what each context that is open wants, in the order of their beginnings
_before: dict[str, str] = {}  # what the user had set, which goes before all of them


@contextmanager
def impatient(tries: int | None = None, timeout_s: int | None = None) -> Iterator[None]:
    """Let MLflow try briefly within, unless the user has said how long; of several threads the last one's word counts.

    Args:
        tries: after the first; None: one, but five in a pod, after 0, 4, 8, 16 and 32 s: no backend promises to start
            a stage again whose server was just restarting.
        timeout_s: of one; None: TIMEOUT_S.
    """
    wanted = {
        TRIES: str((5 if POD in os.environ else 1) if tries is None else tries),
        TIMEOUT: str(timeout_s or TIMEOUT_S),
    }
    with _guard:
        if not _open:
            _before.clear()
            _before.update({key: os.environ[key] for key in wanted if key in os.environ})
        _open.append(wanted)
        os.environ.update(wanted | _before)
    try:
        yield
    finally:
        with _guard:
            _open.remove(wanted)
            if _open:
                os.environ.update(_open[-1] | _before)
            else:
                for key in wanted.keys() - _before.keys():
                    os.environ.pop(key, None)


def unreachable(error: BaseException | None) -> bool:
    """Whether the server did not answer, or was not able to: then the next request will hardly fare better."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    while error is not None:
        if isinstance(error, RequestException | ConnectionError | TimeoutError):
            return True
        if isinstance(error, MlflowException) and (
            "API request to" in str(error) or error.error_code == "TEMPORARILY_UNAVAILABLE"
        ):
            return True
        error = error.__cause__ or error.__context__
    return False

"""What the Kubernetes API said no to, in one sentence with what helps. It needs none of Kubernetes' packages."""

import json


def status_of(error: BaseException) -> int | None:
    """HTTP status of the answer behind an error of kubeflow's SDK, which wraps it; None where there was no answer."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(status := getattr(cause, "status", None), int):
            return status
        cause = cause.__cause__
    return None


def reason(error: BaseException) -> str:
    """The API server's own message, or that of the error that began it, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    try:
        return str(json.loads(error.body)["message"])  # type: ignore[attr-defined]
    except AttributeError:
        return " ".join(f"{type(error).__name__}: {error}".split())
    except (TypeError, ValueError, KeyError):
        return f"{status_of(error)} {getattr(error, 'reason', '')}"


def advice(said: str, namespace: str) -> str:
    """What the cluster said, and what helps."""
    if "exceeded quota" in said:
        return f"{said}; ask for fewer nodes or for less on each, or raise the ResourceQuota of {namespace}"
    if "forbidden" in said:
        return f"{said}; apply pipelines/manifests, and run the pipeline as the service account that it binds"
    return said

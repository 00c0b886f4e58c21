"""What a run on a cluster needs, looked at by its first task, before anything costs money.

On a laptop, where nothing is asked for and no cluster is around, there is nothing to find and it passes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from un2clip import doctor
from un2clip.cluster.outcome import refused
from un2clip.cluster.scheduling import Pool, Unanswered, read_nodes, shortage, within
from un2clip.doctor import Check
from un2clip.errors import UserError
from un2clip.tracking import store

#: Keys of `requires`: the environment variables that a Secret must bring, or the nodes.
SECRETS = {
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "hub": ("HF_TOKEN",),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
}
NODES = "nodes"


def check_prerequisites(**names: Any) -> None:
    """Print every finding of `examine`.

    Raises:
        UserError: something failed; one line for each.
    """
    checks = list(examine(**names))
    for check in checks:
        print(check)
    if failed := [f"{check.name}: {check.message}; {check.fix}" for check in checks if check.state == "FAIL"]:
        refused("; ".join(failed))
        raise UserError("the run was not started.\n" + "\n".join(failed))


def examine(
    *,
    requires: Sequence[str],
    mounted: bool,
    volume: str,
    space_gib: float,
    images: str,
    benchmark_data: str,
    benchmarks: Sequence[str],
    accelerator_type: str,
    accelerators: Sequence[str],
    node_selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, Any]],
) -> Iterator[Check]:
    """Every check; what nobody asked for is not mentioned.

    Args:
        requires: keys of SECRETS, or nodes: without these the run must not start.
        mounted: whether the pipeline was compiled with a volume.
        volume: name of the claim.
        space_gib: free space wanted in the current directory, which is the volume where there is one.
        images: folder of tars; "" for the laptop world.
        benchmark_data: folder with one folder of data a benchmark; "" for the laptop world's.
        benchmarks: their names.
        accelerator_type: resource name of the accelerators.
        accelerators: how many of them each kind of task wants, as texts.
        node_selector: labels of the nodes for accelerated tasks.
        tolerations: of accelerated tasks, as in a pod's spec.

    Raises:
        UserError: a word of `requires`, or a number of accelerators, is none.
    """
    known = (*SECRETS, NODES)
    if unknown := [word for word in requires if word not in known]:
        raise UserError(f"requires must be of {', '.join(known)}; got {unknown[0]!r}")
    for word, variables in SECRETS.items():
        if word in requires:
            yield _secret(word, variables)
    yield from _services()
    yield from _nodes(
        Pool(resource=accelerator_type, count=_most(accelerators), selector=node_selector, tolerations=tolerations),
        needed=NODES in requires,
    )
    if volume and not mounted:
        fix = "submit pipelines/un2clip-gpu.yaml, or compile with compiled.volume true"
        yield Check("volume", "FAIL", f"{volume} is named, but this pipeline was compiled without a volume", fix)
    yield doctor.writable(Path.cwd())
    yield doctor.space(Path.cwd(), space_gib)
    if images:
        yield _folder("images", Path(images), "*.tar", mounted)
    for name in benchmarks if benchmark_data else ():
        yield _folder("benchmark_data", Path(benchmark_data) / name, "*", mounted)


def _secret(word: str, variables: Sequence[str]) -> Check:
    missing = [name for name in variables if not os.environ.get(name)]
    if missing:
        fix = f"make the Secret that {word}_secret names, with these keys (docs/cluster.md)"
        return Check(f"secret {word}", "FAIL", f"{', '.join(missing)} not set", fix)
    return Check(f"secret {word}", "ok", ", ".join(variables))


def _services() -> Iterator[Check]:
    """The services whose addresses are set. MLflow is asked with its credentials, as each stage will."""
    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        try:
            store.connect()
            yield Check("MLflow", "ok", "answers")
        except UserError as error:
            message, _, fix = str(error).partition("; ")
            yield Check("MLflow", "FAIL", message, fix)
    for variable in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
        if url := os.environ.get(variable):
            yield doctor.service(variable, url)


def _most(accelerators: Sequence[str]) -> int:
    if wrong := [text for text in accelerators if not str(text).isdecimal()]:
        raise UserError(f"a number of accelerators must be a text of digits, got {wrong[0]!r}")
    return max(map(int, accelerators), default=0)


def _nodes(pool: Pool, *, needed: bool) -> Iterator[Check]:
    """Whether a node could take the accelerated tasks; a pool that grows from nothing has none yet, so it may warn."""
    if not within() or not (pool.count or pool.selector):
        return
    try:
        lacks = shortage(pool, read_nodes())
    except Unanswered as why:
        fix = "look yourself: kubectl describe nodes; or allow it to (docs/cluster.md)"
        yield Check(NODES, "warn", f"nobody knows whether a node can take the accelerated tasks: {why}", fix)
        return
    message, _, fix = lacks.partition("; ")
    state = "ok" if not lacks else "FAIL" if needed else "warn"
    yield Check(NODES, state, message or "there is one for the accelerated tasks", fix)  # type: ignore[arg-type]


def _folder(name: str, folder: Path, pattern: str, mounted: bool) -> Check:
    """Whether a folder has anything in it, or one folder below, that fits the pattern."""
    if any(folder.glob(pattern)) or any(folder.glob(f"*/{pattern}")):
        return Check(name, "ok", str(folder))
    message = f"{folder} has no {pattern}" if folder.is_dir() else f"{folder} does not exist"
    fix = "it is looked for on the volume" if mounted else "without a volume a task sees no folder of yours"
    return Check(name, "FAIL", message, fix)

"""What a run on a cluster needs, looked at by its first task, before anything costs money.

On a laptop, where nothing is asked for and no cluster is around, there is nothing to find and it passes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from un2clip import doctor
from un2clip.cluster.outcome import refused
from un2clip.cluster.scheduling import Pool, Unanswered, quantity, read_nodes, shortage, within
from un2clip.cluster.secret_files import read_secrets
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
#: Stages that run where node_selector and tolerations say, with accelerators if any (pipelines/resources.py).
ACCELERATED = ("backbones", "latents", "finetune", "diffusion_loss", "evaluate", "reconstruct", "assistant", "ask")
#: Those that use several on one machine, of which there is a parameter of their own.
SEVERAL = ("finetune", "assistant")


def check_prerequisites(**names: Any) -> None:
    """Print every finding of `examine`.

    Raises:
        UserError: something failed; one line for each.
    """
    read_secrets()
    checks = list(examine(**names))
    for check in checks:
        print(check)
    if failed := [f"{check.name}: {check.message}; {check.fix}" for check in checks if check.state == "FAIL"]:
        refused("; ".join(failed))
        raise UserError("the run was not started.", *failed)


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
    requests: Mapping[str, str],
    node_selector: Mapping[str, str],
    tolerations: Sequence[Mapping[str, Any]],
    instructions: str = "",
    named: Mapping[str, object] | None = None,
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
        accelerators: how many of them an accelerated task wants, and how many one of SEVERAL, as texts.
        requests: cores and memory of each stage, as STAGE_cpu and STAGE_memory in Kubernetes' quantities.
        node_selector: labels of the nodes for accelerated tasks.
        tolerations: of accelerated tasks, as in a pod's spec.
        instructions: folder of what assistants learn from; "" for the laptop world's.
        named: parameters of the run that must not be empty, and their values.

    Raises:
        UserError: a word of `requires`, a number of accelerators, or on a cluster a quantity, is none.
    """
    known = (*SECRETS, NODES)
    if unknown := [word for word in requires if word not in known]:
        raise UserError(f"requires must be of {', '.join(known)}; got {unknown[0]!r}")
    for word, variables in SECRETS.items():
        if word in requires:
            yield _secret(word, variables)
    yield from _services()
    common, own = _counts(accelerators)
    if within():
        pools = {stage: Pool(wanted=wanted) for stage, wanted in _wanted(requests).items()}
        for stage in (stage for stage in ACCELERATED if stage in pools):
            count = Decimal(own if stage in SEVERAL else common)
            wanted = {**pools[stage].wanted} | ({accelerator_type: count} if count else {})
            pools[stage] = Pool(wanted=wanted, selector=node_selector, tolerations=tolerations)
        yield _nodes(pools, needed=NODES in requires)
    if volume and not mounted:
        fix = "submit pipelines/un2clip-gpu.yaml, or compile with compiled.volume true"
        yield Check("volume", "FAIL", f"{volume} is named, but this pipeline was compiled without a volume", fix)
    yield doctor.writable(Path.cwd())
    yield doctor.space(Path.cwd(), space_gib)
    if images:
        yield _folder("images", Path(images), "*.tar", mounted)
    if instructions:
        yield _folder("instructions", Path(instructions), "*.json", mounted)
    for name in [name for name, value in (named or {}).items() if not value]:
        yield Check(name, "FAIL", "is empty, and there is nothing to do without it", f"submit with {name}=...")
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


def _counts(accelerators: Sequence[str]) -> list[int]:
    if wrong := [text for text in accelerators if not str(text).isdecimal()]:
        raise UserError(f"a number of accelerators must be a text of digits, got {wrong[0]!r}")
    return [int(text) for text in accelerators]


def _wanted(requests: Mapping[str, str]) -> dict[str, dict[str, Decimal]]:
    """What each stage asks of a node, by resource."""
    wanted: dict[str, dict[str, Decimal]] = {}
    for name, text in requests.items():
        stage, _, resource = name.rpartition("_")
        wanted.setdefault(stage, {})[resource] = quantity(text, name)
    return wanted


def _nodes(pools: Mapping[str, Pool], *, needed: bool) -> Check:
    """Whether a node could take each stage's task; a pool that grows from nothing has none yet, so it may warn."""
    try:
        nodes = read_nodes()
    except Unanswered as why:
        fix = "look yourself: kubectl describe nodes; or allow it to (docs/cluster.md)"
        return Check(NODES, "warn", f"nobody knows whether a node can take the tasks: {why}", fix)
    lacks = {stage: lack for stage, pool in pools.items() if (lack := shortage(pool, nodes))}
    if not lacks:
        return Check(NODES, "ok", "there is one for every task")
    said, _, fix = next(iter(lacks.values())).partition("; ")
    alike = [stage for stage, lack in lacks.items() if lack.partition("; ")[0] == said]
    others = "" if len(alike) == len(lacks) else f" ({len(lacks) - len(alike)} other stages lack something too)"
    return Check(NODES, "FAIL" if needed else "warn", f"{', '.join(alike)}: {said}{others}", fix)


def _folder(name: str, folder: Path, pattern: str, mounted: bool) -> Check:
    """Whether a folder has anything in it, or one folder below, that fits the pattern."""
    if any(folder.glob(pattern)) or any(folder.glob(f"*/{pattern}")):
        return Check(name, "ok", str(folder))
    message = f"{folder} has no {pattern}" if folder.is_dir() else f"{folder} does not exist"
    fix = "it is looked for on the volume" if mounted else "without a volume a task sees no folder of yours"
    return Check(name, "FAIL", message, fix)

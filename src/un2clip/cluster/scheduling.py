"""What a pod may ask its cluster, with its own service account. Only it and trainjob.py import kubernetes.

Scheduling is repeated in its simplest form (labels, taints, the resources that a node can give): enough to say
before a run what would otherwise be a task that waits for ever.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from un2clip.errors import UserError

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

Record = Mapping[str, Any]
SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The nodes that a task asks for, as its pod's spec says it.

    Attributes:
        wanted: how much one task wants of each resource: cpu (cores), memory (bytes), nvidia.com/gpu.
        selector: labels that a node must have.
        tolerations: taints that a node may have.
    """

    wanted: Mapping[str, Decimal]
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Record] = ()


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node: its labels, its taints (key, value, effect) and what it can give to pods, by resource."""

    name: str
    labels: Mapping[str, str]
    taints: Sequence[Record]
    allocatable: Mapping[str, str]
    cordoned: bool = False


class Unanswered(Exception):
    """The Kubernetes API did not say; the message is why."""


def within() -> bool:
    """Whether this process is a container of a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def quantity(text: str, name: str) -> Decimal:
    """A number from Kubernetes' own writing, such as 500m or 4Gi.

    Raises:
        UserError: it is none; the message has the name.
    """
    from kubernetes.utils.quantity import parse_quantity

    try:
        if not re.fullmatch(r"[\d.]\S*", text):  # Python's Decimal reads also spaces, signs and NaN
            raise ValueError(text)
        return Decimal(parse_quantity(text))
    except ValueError:
        raise UserError(f"{name} must be a quantity of Kubernetes, such as 500m or 4Gi; got {text!r}") from None


def read_nodes(api: "CoreV1Api | None" = None) -> list[Node]:
    """Every node of the cluster.

    Args:
        api: instead of the pod's own.

    Raises:
        Unanswered: the service account may not list nodes, or the API does not answer.
    """
    from kubernetes import client, config

    try:
        if api is None:
            config.load_incluster_config()
            api = client.CoreV1Api()
        listed = api.list_node(_request_timeout=SECONDS).items
    except client.ApiException as error:
        why = "this service account may not list nodes" if error.status in (401, 403) else f"{error.reason}"
        raise Unanswered(why) from None
    except Exception as error:
        raise Unanswered(f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    return [
        Node(
            name=node.metadata.name,
            labels=node.metadata.labels or {},
            taints=[{"key": t.key, "value": t.value or "", "effect": t.effect} for t in node.spec.taints or []],
            allocatable=node.status.allocatable or {},
            cordoned=bool(node.spec.unschedulable),
        )
        for node in listed
    ]


def shortage(pool: Pool, nodes: Iterable[Node]) -> str:
    """Why no node could ever take a task of the pool, as a sentence with its mending; "" where one could."""
    nodes = list(nodes)
    labels = ", ".join(f"{key}={value}" for key, value in pool.selector.items())
    fitting = [node for node in nodes if all(node.labels.get(k) == v for k, v in pool.selector.items())]
    if not fitting:
        return f"none of {len(nodes)} nodes has the labels {labels}; set node_selector to a pool that is there"
    free = [node for node in fitting if not node.cordoned and not _untolerated(node, pool)]
    which = f"nodes with {labels}" if labels else "nodes"
    if not free:
        taints = sorted({_shown(taint) for node in fitting for taint in _untolerated(node, pool)})
        why = f"have taints that no toleration allows: {', '.join(taints)}" if taints else "are cordoned"
        return f"all {len(fitting)} {which} {why}; " + ("set tolerations" if taints else "uncordon one")
    given = [{name: quantity(node.allocatable.get(name, "0"), name) for name in pool.wanted} for node in free]
    for name, amount in pool.wanted.items():
        if amount > (most := max(each[name] for each in given)):
            fix = "lower it" + (", or look whether the device plugin runs" if not most else "")
            return (
                f"{_amount(name, amount)} asked for, and none of {len(free)} {which} gives more than "
                f"{_amount(name, most)}; {fix}"
            )
    if not any(all(each[name] >= amount for name, amount in pool.wanted.items()) for each in given):
        together = ", ".join(_amount(name, amount) for name, amount in pool.wanted.items())
        return f"{together} are asked for, and none of {len(free)} {which} gives them together; lower one of them"
    return ""


def _amount(name: str, amount: Decimal) -> str:
    """An amount as a reader would say it."""
    return f"{amount / 2**30:.1f} GiB of memory" if name == "memory" else f"{amount.normalize():f} {name}"


def _untolerated(node: Node, pool: Pool) -> list[Record]:
    """Taints that keep the pool's pods off a node."""
    hard = [taint for taint in node.taints if taint["effect"] in ("NoSchedule", "NoExecute")]
    return [taint for taint in hard if not any(_tolerates(each, taint) for each in pool.tolerations)]


def _tolerates(toleration: Record, taint: Record) -> bool:
    """Kubernetes' own rule: no effect and, with Exists, no key stand for any; the operator is Equal unless said."""
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return not toleration.get("key") or toleration["key"] == taint["key"]
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint["value"]


def _shown(taint: Record) -> str:
    value = f"={taint['value']}" if taint["value"] else ""
    return f"{taint['key']}{value}:{taint['effect']}"

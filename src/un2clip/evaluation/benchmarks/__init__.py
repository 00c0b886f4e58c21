"""Benchmarks: one file each. Adding a file here and its name to params.yaml adds a benchmark.

A file has

- `MODEL`: which kind of model it measures;
- `run(model, folder, *, batch_size)`, which scores any such model, item by item, and knows nothing of methods;
- where it has numbers of its own, a frozen dataclass `Options`: the section `evaluate.FILE` of params.yaml, which `run`
  then takes as `options`;
- where it has pictures to show, `draw(models by role, folder, png, *, batch_size)`, with `options` as `run` has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from un2clip.evidence.items import Item

Model = Literal["clip", "mllm", "generator"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What one model reached: every item, in the order of the data, the unit of their score, and the protocol.

    The unit is a row of UNITS. The protocol is one line on how it was measured, as far as that moves the number and is
    not in the data's hash. `also` has further scores of the same pass, by what is added to the benchmark's name.
    """

    unit: str
    protocol: str
    items: tuple[Item, ...]
    also: Mapping[str, "BenchmarkResult"] = field(default_factory=dict)

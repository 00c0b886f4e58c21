"""Benchmarks: one file each. Adding a file here and its name to params.yaml adds a benchmark.

A file has

- `MODEL`: which kind of model it measures;
- `run(model, folder, *, batch_size)`, which scores any such model, item by item, and knows nothing of methods; in its
  place, where an mllm is only asked, `read(folder)`, the questions, and `score(questions, answers)`;
- where it has numbers of its own, a frozen dataclass `Options`: the section `evaluate.FILE` of params.yaml (of an mllm
  `ask.FILE`), which `run` then takes as `options`;
  where it compares with the untouched model, `run` takes that as `reference`, None where there is none;
  where its batches can be measured apart, by several processes, it takes what calls a function on each as `spread`
  (evaluation/spreading.py), and begins nothing else that is random or takes long before a loop;
- where it has pictures to show, `draw(models by role, folder, png, *, batch_size)`, with `options` as `run` has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from un2clip.evidence.items import Item

#: clip: a Clip. autoencoder: an encoder with what draws pixels of its patches (evaluation/autoencoding.py). mllm: what
#: answers questions.
Model = Literal["clip", "autoencoder", "mllm"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """What one model reached: every item, in the order of the data, the unit of their score, and the protocol.

    The unit is a row of UNITS. The protocol is one line on how it was measured, as far as that moves the number and is
    not in the data's hash.

    Attributes:
        number: the score, in a unit of whole sets, which has no items.
        also: further scores of the same pass, by what is added to the benchmark's name.
        columns: of questions: the scores as published tables name and scale them; they follow from the items.
        understood: of questions: what was understood of each answer, in the order of the items; "" for nothing.
    """

    unit: str
    protocol: str
    items: tuple[Item, ...]
    number: float | None = None
    also: Mapping[str, "BenchmarkResult"] = field(default_factory=dict)
    columns: Mapping[str, float] = field(default_factory=dict)
    understood: tuple[str, ...] = ()

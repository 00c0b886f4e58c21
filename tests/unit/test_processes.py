"""Two processes train as one: DistributedDataParallel over gloo, on what it stumbles over most easily."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from tests.rows import FAST
from tests.toy_clips import model_of, write_folder
from un2clip import devices
from un2clip.config import build, merge
from un2clip.datasets.loader import narrow
from un2clip.decoders.kinds import open_decoder
from un2clip.errors import UserError
from un2clip.methods.building import new_objective
from un2clip.methods.objective import Objective
from un2clip.methods.table import METHODS
from un2clip.models.clip import load_clip
from un2clip.stages.finetune_job import Finetune
from un2clip.training import distributed
from un2clip.training.config import ComputeConfig, PhaseConfig
from un2clip.training.loop import fit
from un2clip.world.clip import Contrastive

N = 16  # samples of a batch of all processes


class Weighted(Contrastive):
    """Contrastive, with samples that count differently: the first for nothing, the last for three."""

    def weights(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["weights"]


def batches(start: int):
    """This process's part of batches of noise."""
    rng, mine = torch.Generator().manual_seed(0), N // devices.world_size()
    while True:
        images = torch.randn(N, 3, 32, 32, generator=rng)
        texts = torch.randint(1, 9, (N, 16), generator=rng)
        weights = torch.linspace(0, 3, N)
        whole = {"keys": ["k"] * N, "pixel_values": images, "target": images.tanh(), "valid": torch.ones(N) > 0}
        part = slice(devices.rank() * mine, (devices.rank() + 1) * mine)
        yield narrow(whole | {"texts": texts, "weights": weights}, part)


def train(section: dict[str, object], folder: Path) -> None:
    """UniLIP on a SigLIP tower, whose pooling its loss does not read; and CLIP's loss in groups of four."""
    params = build(Finetune, section, "finetune")
    found: dict[str, list[dict[str, float]]] = {}
    with distributed.group(torch.device("cpu")):
        clip, row = load_clip(folder / "siglip"), METHODS["unilip"]
        decoder = open_decoder(
            row.decoder, folder, scratch=params.scratch, image_px=32, seed=0, device=torch.device("cpu")
        )
        unilip = new_objective(row, clip, decoder, params.anchors, seed=0)
        phases = [(phase.trains, params.phases[phase.numbers]) for phase in row.phases]
        found["unilip"] = follow(unilip, phases, params.compute)
        tune = [(("clip",), dataclasses.replace(params.phases["tune"], lr={"clip": 1e-3}))]
        for name, kind in (("contrastive", Contrastive), ("weighted", Weighted)):
            found[name] = follow(kind(model_of("gelu"), group=4), tune, params.compute)
    if devices.rank() == 0:
        (folder / f"history-{devices.world_size()}.json").write_text(json.dumps(found))


def follow(
    objective: Objective, phases: list[tuple[tuple[str, ...], PhaseConfig]], compute: ComputeConfig
) -> list[dict[str, float]]:
    history: list[dict[str, float]] = []
    for trains, phase in phases:
        rng = torch.Generator().manual_seed(0)
        fit(objective, trains, phase, compute, batches, rng, history, done=len(history))
    return history


@pytest.fixture(scope="module")
def histories(tiny, tmp_path_factory) -> list[dict[str, list[dict[str, float]]]]:
    """The same trainings by one process and by two, which accumulate besides."""
    folder = tmp_path_factory.mktemp("processes")
    write_folder(folder / "siglip", "siglip")
    phases = {name: {"steps": 3} for name in ("unilip-1", "unilip-2", "tune")} | {"unilip-2": FAST | {"steps": 3}}
    alone = merge(tiny.params["finetune"], {"phases": phases, "compute": {"refer_every": 0}})
    several = merge(alone, {"compute": {"max_per_device": 6, "processes": 2}})
    train(alone, folder)
    distributed.launch(2, train, several, folder)
    return [json.loads((folder / f"history-{world}.json").read_text()) for world in (1, 2)]


@pytest.mark.parametrize("what", ["unilip", "contrastive", "weighted"])
def test_two_processes_train_as_one(histories, what: str) -> None:
    """The same losses, whatever is accumulated: weights are divided by all processes', groups are kept whole."""
    alone, several = (history[what] for history in histories)
    assert len(alone) == len(several) == (6 if what == "unilip" else 3)
    for row, other in zip(several, alone, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert alone[-1]["loss"] != alone[0]["loss"]


def test_weights_weigh(histories) -> None:
    """The weighted mean of the first step is the formula's, which the plain mean is not."""
    objective, batch = Contrastive(model_of("gelu"), group=4), next(batches(0))
    with torch.no_grad():
        losses, weights = objective(batch, {})["loss"].double(), batch["weights"].double()
    assert histories[0]["weighted"][0]["loss"] == pytest.approx((losses @ weights / weights.sum()).item(), rel=1e-6)
    assert histories[0]["contrastive"][0]["loss"] == pytest.approx(losses.mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("size", "at_once", "group", "parts"), [(16, 6, 4, [4] * 4), (8, 64, 8, [8]), (7, 3, 1, [3, 3, 1])]
)
def test_microbatches_are_cut_between_groups(tiny, size: int, at_once: int, group: int, parts: list[int]) -> None:
    """As many samples as fit, never a part of a group."""
    compute = build(ComputeConfig, tiny.params["finetune"]["compute"] | {"max_per_device": at_once}, "compute")
    cut = list(compute.microbatches(size, group))
    assert [part.stop - part.start for part in cut] == parts and cut[0].start == 0 and cut[-1].stop == size


@pytest.mark.parametrize(("size", "at_once", "group"), [(16, 3, 4), (6, 64, 4)])
def test_a_group_that_does_not_fit_is_refused(tiny, size: int, at_once: int, group: int) -> None:
    """A contrast of fewer samples would be another loss: it is an error, with the number to change."""
    compute = build(ComputeConfig, tiny.params["finetune"]["compute"] | {"max_per_device": at_once}, "compute")
    with pytest.raises(UserError, match=f"a contrast group of {group} samples must fit into max_per_device"):
        list(compute.microbatches(size, group))

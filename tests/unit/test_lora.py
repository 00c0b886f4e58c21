"""Low-rank updates against the formula W + alpha / rank B A, on the towers that they are for."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.toy_clips import FAMILIES, model_of
from un2clip.training.config import LoraConfig
from un2clip.training.lora import add_lora, merge_lora

CONFIG = LoraConfig(rank=3, alpha=6.0)


def matrices(tower: nn.Module) -> dict[str, torch.Tensor]:
    """Every matrix of a linear layer or of attention, found by name."""
    known = ("in_proj_weight", "out_proj.weight", "c_fc.weight", "c_proj.weight", "q.weight", "kv.weight", "qkv.weight")
    return {
        name: value.detach().clone()
        for name, value in tower.named_parameters()
        if value.ndim == 2 and name.endswith((*known, "proj.weight", "fc1.weight", "fc2.weight"))
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_formula_and_leaves_no_trace(family: str) -> None:
    """Nothing changes at first; then each matrix is W + 2 B A; merged, the tower has the keys and outputs of before."""
    tower, pixel_values = model_of(family).visual, torch.randn(2, 3, 32, 32)
    keys, before, first = set(tower.state_dict()), matrices(tower), tower(pixel_values)
    plain = {name: value.clone() for name, value in tower.state_dict().items() if name not in before}
    trained = add_lora(tower, CONFIG, seed=0)
    assert torch.equal(tower(pixel_values), first)
    with torch.no_grad():
        for parameter in trained:
            parameter.copy_(torch.randn_like(parameter) / 10)
    updated = tower(pixel_values)
    by_hand = copy.deepcopy(model_of(family).visual)
    with torch.no_grad():
        for (name, value), a, b in zip(before.items(), trained[::2], trained[1::2], strict=True):
            by_hand.get_parameter(name).copy_(value + 2 * b @ a)
    assert_close(updated, by_hand(pixel_values), rtol=1e-5, atol=1e-5)
    merge_lora(tower)
    assert set(tower.state_dict()) == keys
    assert all(torch.equal(tower.state_dict()[name], value) for name, value in plain.items())
    assert_close(tower(pixel_values), updated, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(updated, first)


def test_the_seed_alone_decides_where_it_starts() -> None:
    """A is by the seed, B zero, and torch's own state is left alone."""
    layers = [nn.Linear(8, 4) for _ in range(3)]
    state = torch.get_rng_state()
    first, second, third = (add_lora(layer, CONFIG, seed) for layer, seed in zip(layers, (1, 1, 2), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[0], third[0])
    assert first[0].shape == (3, 8) and first[1].shape == (4, 3) and not first[1].any()

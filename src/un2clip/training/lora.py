"""Low-rank updates of a module's matrices (arXiv 2106.09685), by torch's own parametrisation, and merged at the end.

peft is not used: it adds an update twice to `out_proj` of nn.MultiheadAttention, which open_clip's blocks have
(huggingface/peft #3774).
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from un2clip.training.config import LoraConfig

#: Names of matrices: of a linear layer, and of the packed projection of attention.
MATRICES = ("weight", "in_proj_weight")


class LowRank(nn.Module):
    """W -> W + alpha / rank * B A. B starts at zero, so nothing changes at first; A as a linear layer's weight."""

    def __init__(self, weight: Tensor, config: LoraConfig) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = config.alpha / config.rank
        self.a = nn.Parameter(torch.empty(config.rank, columns, device=weight.device))
        self.b = nn.Parameter(torch.zeros(rows, config.rank, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.b @ self.a


def add_lora(part: nn.Module, config: LoraConfig, seed: int) -> list[nn.Parameter]:
    """Give every matrix of a part's linear and attention layers an update; what trains of the part is returned."""
    added: list[nn.Parameter] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module, name in _matrices(part):
            update = LowRank(getattr(module, name), config)
            parametrize.register_parametrization(module, name, update)
            added += [update.a, update.b]
    return added


def merge_lora(part: nn.Module) -> None:
    """Write the updates into the matrices: the same keys as before, the same outputs."""
    for module in list(part.modules()):
        for name in MATRICES:
            if parametrize.is_parametrized(module, name):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _matrices(part: nn.Module) -> list[tuple[nn.Module, str]]:
    kinds = (nn.Linear, nn.MultiheadAttention)
    return [
        (module, name)
        for module in part.modules()
        if isinstance(module, kinds)
        for name in MATRICES
        if isinstance(weight := getattr(module, name, None), nn.Parameter) and weight.ndim == 2
    ]

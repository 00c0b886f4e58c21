"""What trains on several processes of which each holds a share, gathered one module at a time: torch's FSDP.

It is `fully_shard`, which accelerate calls FSDP 2. What is no part of the objective, such as an encoder that never
trains, every process holds whole.
"""

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from un2clip import devices
from un2clip.errors import UserError
from un2clip.training.config import ComputeConfig
from un2clip.training.replicas import Replicas


class Shards(Replicas):
    """As Replicas, and one phase's: the objective's own parameters are empty meanwhile, and whole again behind it.

    They are whole on every process at its beginning and at its end, so both need room for the weights in float32.
    After an error they stay empty, since the other processes may not be there to give their shares.

    Raises:
        UserError: the objective cannot be sharded.
    """

    def spread(self, groups: list[dict[str, Any]], compute: ComputeConfig) -> Any:
        """A copy of the objective with the same parameters; sharding gives it others in their place."""
        if not self.objective.shards():
            raise UserError("compute.shard must be false here: an assistant alone can be trained in shards")
        whole = dict(self.objective.named_parameters())
        spread = copy.deepcopy(self.objective, {id(each): each for each in whole.values()})
        kept = set(whole.values()) - {each for part in spread.parts().values() for each in part.parameters()}
        device = next(iter(whole.values())).device
        mesh = init_device_mesh(device.type, (devices.world_size(),))
        # gathered in bf16, reduced in float32; autocast alone would keep a copy of every module that was gathered
        of, reduced = (torch.bfloat16, torch.float32) if compute.precision == "bf16" else (None, None)
        for module in spread.shards():
            fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(of, reduced))
        policy = MixedPrecisionPolicy(of, reduced, cast_forward_inputs=False)
        fully_shard(spread, mesh=mesh, mp_policy=policy, ignored_params=kept)
        self.shares = {name: each for name, each in spread.named_parameters() if isinstance(each, DTensor)}
        names = {id(each): name for name, each in whole.items()}
        for group in groups:
            group["params"] = [self.shares[names[id(each)]] for each in group["params"]]
        for name in self.shares:
            whole[name].data = whole[name].new_empty(0)
        return spread

    def accumulating(self, last: bool) -> AbstractContextManager[None]:
        """Nothing: gradients that wait for the last pass would be whole ones."""
        return nullcontext()

    def clip(self) -> float:
        return float(_whole(nn.utils.clip_grad_norm_(self.trained, self.phase.clip_grad_norm)))

    def pack(self) -> dict[str, Tensor]:
        """As Replicas', whole and on the CPU, for the first process; all must call it, and the others get nothing."""
        tensors: dict[str, Tensor] = {}
        for name, value in super().pack().items():
            whole = _whole(value)
            if devices.rank() == 0:
                tensors[name] = whole.cpu()
        return tensors

    def unpack(self, tensors: dict[str, Tensor]) -> None:
        super().unpack({name: self._share(name, value) for name, value in tensors.items()})

    def _share(self, name: str, value: Tensor) -> Tensor:
        """This process's share of what `pack` made whole."""
        kind, _, rest = name.partition(".")
        like = self.trained[int(rest.partition(".")[0])] if kind in ("parameter", "average", "optimizer") else value
        if not isinstance(like, DTensor) or like.shape != value.shape:
            return value
        there = value.to(like.device)
        return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None).clone()

    def __exit__(self, *error: object) -> None:
        if any(error):
            return
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.averages = []
        for name, parameter in self.objective.named_parameters():
            if name in self.shares:
                parameter.data = _whole(self.shares[name].detach())
        super().__exit__()


def _whole(value: Tensor) -> Tensor:
    """The whole tensor, by all processes together."""
    return value.full_tensor() if isinstance(value, DTensor) else value

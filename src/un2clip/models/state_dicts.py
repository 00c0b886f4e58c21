"""The same weights under Hugging Face's names: what changes between the libraries is names, and two splits.

open_clip keeps query, key and value in one matrix, Hugging Face in three; projections are transposed. A state here
gives views of the source's tensors, but for one of SigLIP's, so that the same tables read and write.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

State = dict[str, Tensor]
_FOLDED = {  # factor of a LayerScale, open_clip's or timm's -> the layer before it
    "ls_1.gamma": "attn.out_proj", "ls_2.gamma": "mlp.c_proj", "ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2",
}  # fmt: skip


class Reading(State):
    """A state dict that knows which of its tensors have been read."""

    def __init__(self, state: State) -> None:
        super().__init__(state)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def unread(self) -> Iterator[str]:
        return (name for name in self if name not in self.read)


def without_layer_scale(source: State) -> State:
    """The same model in a class that has no LayerScale: its factors go into the layers whose outputs they scale."""
    state = dict(source)
    for name in source:
        for end, layer in _FOLDED.items():
            if name.endswith(f".{end}"):
                gamma, before = state.pop(name), f"{name.removesuffix(end)}{layer}"
                state[f"{before}.weight"] = source[f"{before}.weight"] * gamma[:, None]
                state[f"{before}.bias"] = source[f"{before}.bias"] * gamma
    return state


def clip_state(source: State) -> State:
    """open_clip's CLIP -> CLIPModel."""
    state = clip_vision_state(source, "visual.")
    state |= _prefixed("text_model.", _text_state(source, ""))
    state["text_projection.weight"] = source["text_projection"].T
    return state | {"logit_scale": source["logit_scale"].reshape(())}


def clip_vision_state(source: State, prefix: str = "") -> State:
    """open_clip's VisionTransformer -> CLIPVisionModelWithProjection."""
    state = {
        "embeddings.class_embedding": source[f"{prefix}class_embedding"],
        "embeddings.patch_embedding.weight": source[f"{prefix}conv1.weight"],
        "embeddings.position_embedding.weight": source[f"{prefix}positional_embedding"],
    }
    state |= _same("pre_layrnorm", source, f"{prefix}ln_pre") | _same("post_layernorm", source, f"{prefix}ln_post")
    state |= _layers(source, f"{prefix}transformer.resblocks.")
    return _prefixed("vision_model.", state) | {"visual_projection.weight": source[f"{prefix}proj"].T}


def siglip_state(source: State) -> State:
    """open_clip's CustomTextCLIP with timm's ViT -> SiglipModel."""
    text = _text_state(source, "text.") | _same("head", source, "text.text_projection")
    state = _prefixed("text_model.", text) | _prefixed("vision_model.", _siglip_vision_state(source))
    return state | {name: source[name].reshape(1) for name in ("logit_scale", "logit_bias")}


def _text_state(source: State, prefix: str) -> State:
    return {
        "embeddings.token_embedding.weight": source[f"{prefix}token_embedding.weight"],
        "embeddings.position_embedding.weight": source[f"{prefix}positional_embedding"],
        **_same("final_layer_norm", source, f"{prefix}ln_final"),
        **_layers(source, f"{prefix}transformer.resblocks."),
    }


def _layers(source: State, blocks: str) -> State:
    """The residual blocks of open_clip's transformers."""
    state: State = {}
    for i in range(_count(source, blocks)):
        block, layer = f"{blocks}{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            state |= _split(f"{layer}.self_attn.", "qkv", kind, source[f"{block}.attn.in_proj_{kind}"])
        state |= _same(f"{layer}.self_attn.out_proj", source, f"{block}.attn.out_proj")
        state |= _same(f"{layer}.mlp.fc1", source, f"{block}.mlp.c_fc")
        state |= _same(f"{layer}.mlp.fc2", source, f"{block}.mlp.c_proj")
        state |= _same(f"{layer}.layer_norm1", source, f"{block}.ln_1")
        state |= _same(f"{layer}.layer_norm2", source, f"{block}.ln_2")
    return state


def _siglip_vision_state(source: State) -> State:
    """timm's ViT with its pooling by attention."""
    trunk, pool = "visual.trunk.", "visual.trunk.attn_pool."
    state = {
        "embeddings.position_embedding.weight": source[f"{trunk}pos_embed"][0],
        "head.probe": source[f"{pool}latent"],
    }
    state |= _same("embeddings.patch_embedding", source, f"{trunk}patch_embed.proj")
    state |= _same("post_layernorm", source, f"{trunk}norm") | _same("head.layernorm", source, f"{pool}norm")
    state |= _same("head.attention.out_proj", source, f"{pool}proj")
    for kind in ("weight", "bias"):
        state[f"head.attention.in_proj_{kind}"] = torch.cat([source[f"{pool}q.{kind}"], source[f"{pool}kv.{kind}"]])
    for part in ("fc1", "fc2"):
        state |= _same(f"head.mlp.{part}", source, f"{pool}mlp.{part}")
    for i in range(_count(source, f"{trunk}blocks.")):
        block, layer = f"{trunk}blocks.{i}", f"encoder.layers.{i}"
        for kind in ("weight", "bias"):
            state |= _split(f"{layer}.self_attn.", "qkv", kind, source[f"{block}.attn.qkv.{kind}"])
        state |= _same(f"{layer}.self_attn.out_proj", source, f"{block}.attn.proj")
        for part in ("fc1", "fc2"):
            state |= _same(f"{layer}.mlp.{part}", source, f"{block}.mlp.{part}")
        state |= _same(f"{layer}.layer_norm1", source, f"{block}.norm1")
        state |= _same(f"{layer}.layer_norm2", source, f"{block}.norm2")
    return state


def _count(source: State, blocks: str) -> int:
    return len({name.removeprefix(blocks).split(".")[0] for name in source if name.startswith(blocks)})


def _split(prefix: str, parts: Iterable[str], kind: str, value: Tensor) -> State:
    return {f"{prefix}{part}_proj.{kind}": each for part, each in zip(parts, value.chunk(3), strict=True)}


def _same(name: str, source: State, from_name: str) -> State:
    return {f"{name}.{kind}": source[f"{from_name}.{kind}"] for kind in ("weight", "bias")}


def _prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}

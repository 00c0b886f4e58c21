"""The plain CLIP: what OpenAI's and Hugging Face's classes can say, and what of a model they cannot, by name.

open_clip builds far more than they do: other poolings, masks, norms, blocks. A model that has such a part would load
there and be another one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, VisionTransformer
from torch import Tensor, nn

from un2clip.models.clip import Clip
from un2clip.models.state_dicts import State, without_layer_scale


@dataclass(frozen=True, kw_only=True)
class Text:
    """The parts of a text tower, wherever open_clip's two classes keep them.

    Attributes:
        projection: (width, D) parameter, a Linear, or None.
        mask: (L, L), or None for none.
        pool: argmax, eos, last, first or none.
        eos: the token that `pool` eos looks for.
    """

    transformer: Any  # of open_clip, whose blocks torch's own types do not know
    ln_final: nn.Module
    projection: nn.Module | Tensor | None
    mask: Tensor | None
    pool: str
    eos: int
    vocabulary: int
    context: int
    own: bool  # its last position is a class token of its own, as CoCa has it


def text_of(model: CLIP | CustomTextCLIP) -> Text | None:
    """The text tower, or None where it is not open_clip's own."""
    tower: Any = model if isinstance(model, CLIP) else model.text
    if not isinstance(tower, CLIP | TextTransformer):
        return None
    return Text(
        transformer=tower.transformer,
        ln_final=tower.ln_final,
        projection=tower.text_projection,
        mask=tower.attn_mask,
        pool=tower.text_pool_type if isinstance(tower, CLIP) else tower.pool_type,
        eos=tower.text_eos_id if isinstance(tower, CLIP) else tower.eos_id,
        vocabulary=tower.token_embedding.num_embeddings,
        context=len(tower.positional_embedding),
        own=getattr(tower, "cls_emb", None) is not None,
    )


def is_siglip(clip: Clip) -> bool:
    """Whether its image tower is timm's: then only SiglipModel may do."""
    return hasattr(clip.model.visual, "trunk")


def image_obstacles(visual: nn.Module) -> list[str]:
    """What of an image tower has no place in a plain one: each a clause, `its image tower has ...`."""
    if not isinstance(visual, VisionTransformer):
        return [f"its image tower is a {type(visual).__name__}"]
    found = _block_obstacles(visual.transformer, "image")
    if visual.attn_pool is not None:
        found.append("its image tower pools by attention")
    elif visual.pool_type != "tok":
        pooled = {"avg": "the patches' average"}.get(visual.pool_type, visual.pool_type)
        found.append(f"its image tower pools by {pooled}, not by the class token")
    if isinstance(visual.ln_pre, nn.Identity):
        found.append("its image tower has no ln_pre")
    if visual.output_tokens:
        found.append("its image tower gives tokens beside the embedding")
    for what, sides in (("images", visual.image_size), ("patches", visual.patch_size)):
        if sides[0] != sides[1]:
            found.append(f"its {what} are {sides[0]} x {sides[1]} px")
    return found


def text_obstacles(text: Text | None) -> list[str]:
    """The same of a text tower."""
    if text is None:
        return ["its text tower is not open_clip's own"]
    found = _block_obstacles(text.transformer, "text")
    if text.own:
        found.append("its text tower has a class token of its own")
    if text.mask is None:
        found.append("its text tower has no causal mask")
    if text.pool not in ("argmax", "eos"):
        found.append(f"its text tower pools by the {text.pool} token, not by the end of the text")
    if isinstance(text.projection, nn.Linear) and text.projection.bias is not None and text.projection.bias.any():
        found.append("its text projection has a bias")
    return found


def clip_obstacles(clip: Clip) -> list[str]:
    """The same of the whole model."""
    found = image_obstacles(clip.model.visual) + text_obstacles(text_of(clip.model))
    return found + ["it has a logit bias"] * (clip.model.logit_bias is not None)


def activation_of(tower: nn.Module) -> str:
    """The activation of a transformer as Hugging Face calls it; "" for another or several."""
    names = {_activation(module) for module in tower.modules()} - {""}
    return names.pop() if len(names) == 1 else ""


def eps_of(*parts: nn.Module) -> float:
    """The epsilon of all norms of a tower; NaN where they differ."""
    found = {module.eps for part in parts for module in part.modules() if isinstance(module, nn.LayerNorm)}
    return found.pop() if len(found) == 1 else float("nan")


def plain_state(clip: Clip) -> State:
    """The weights of a model without obstacles, under the names of open_clip's CLIP, which are OpenAI's."""
    state = {name.removeprefix("text."): value for name, value in clip.model.state_dict().items()}
    state = without_layer_scale(state)
    text = text_of(clip.model)
    assert text is not None
    if isinstance(text.projection, nn.Linear):
        state["text_projection"] = state.pop("text_projection.weight").T
        state.pop("text_projection.bias", None)
    elif text.projection is None:
        state["text_projection"] = torch.eye(clip.embed_dim, device=clip.device)
    return state | {"logit_scale": state["logit_scale"].reshape(())}


def _block_obstacles(transformer: Any, which: str) -> list[str]:
    kinds = {type(block) for block in transformer.resblocks}
    other = sorted(kind.__name__ for kind in kinds if kind is not ResidualAttentionBlock)
    return [f"its {which} tower's blocks are {name}s" for name in other]


def _activation(module: nn.Module) -> str:
    """By the class: open_clip's, torch's and timm's, which are not of one family."""
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"
    return {"QuickGELU": "quick_gelu", "GELU": "gelu", "GELUTanh": "gelu_pytorch_tanh"}.get(type(module).__name__, "")

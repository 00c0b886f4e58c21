"""Dense features of CLIP: for every patch an embedding in the language of the texts, without training.

CLIP trains its class token alone, so its patches drift in the last block. The methods differ in that block only:
who attends to whom, and whether residual and feed-forward stay; a method is a row of DENSE_METHODS. The classes' names,
which the patches are compared with, are embedded here too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, pad
from torch.nn.functional import scaled_dot_product_attention as attention

from un2clip.config import lookup
from un2clip.errors import UserError
from un2clip.evaluation.dense.names import Names
from un2clip.models.clip import Clip

Grid = tuple[int, int]

#: NACLIP's only number: the deviation of its Gaussian, in patches (arXiv 2404.08181).
NEIGHBOURHOOD = 5.0

#: open_clip's own default; another number rounds otherwise.
CLASSES_AT_ONCE = 10


@dataclass(frozen=True, kw_only=True)
class DenseMethod:
    """One row: the last block of the image tower.

    Attributes:
        attend: q, k, v (B, heads, 1 + h * w, head_dim) and the grid (h, w) -> the tokens' new values.
        residual: whether the block's input is added to what attention gives.
        feed_forward: whether the block's MLP follows.
        source: paper.
    """

    attend: Callable[[Tensor, Tensor, Tensor, Grid], Tensor]
    residual: bool
    feed_forward: bool
    source: str


DENSE_METHODS: dict[str, DenseMethod] = {
    "clip": DenseMethod(
        attend=lambda q, k, v, grid: attention(q, k, v), residual=True, feed_forward=True, source="arXiv 2103.00020"
    ),
    "maskclip": DenseMethod(
        attend=lambda q, k, v, grid: v, residual=True, feed_forward=True, source="arXiv 2112.01071"
    ),
    "sclip": DenseMethod(  # the sum of two attentions, not their mean
        attend=lambda q, k, v, grid: attention(q, q, v) + attention(k, k, v),
        residual=True,
        feed_forward=True,
        source="arXiv 2312.01597",
    ),
    "clearclip": DenseMethod(
        attend=lambda q, k, v, grid: attention(q, q, v), residual=False, feed_forward=False, source="arXiv 2407.12442"
    ),
    "naclip": DenseMethod(
        attend=lambda q, k, v, grid: attention(k, k, v, attn_mask=neighbourhood(grid).to(q)),
        residual=False,
        feed_forward=False,
        source="arXiv 2404.08181",
    ),
}


def get_dense_method(name: str) -> DenseMethod:
    """The row called `name`, or a UserError that lists the table."""
    return lookup(DENSE_METHODS, name, "dense method")


def neighbourhood(grid: Grid) -> Tensor:
    """NACLIP's bonus, (1 + h * w, 1 + h * w): a Gaussian of two patches' distance, peak 1; 0 for the class token."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    return pad(torch.exp(-(distance**2) / (2 * NEIGHBOURHOOD**2)), (1, 0, 1, 0))


def check_tower(visual: nn.Module) -> None:
    """Refuse an image tower that has no dense features here: only open_clip's plain ViT and SigLIP's trunk have.

    Raises:
        UserError: it is another tower.
    """
    if isinstance(visual, VisionTransformer):
        plain = all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)
        known = plain and visual.attn_pool is None and not visual.final_ln_after_pool and visual.transformer.batch_first
    else:
        trunk: Any = getattr(visual, "trunk", None)
        pool = getattr(trunk, "attn_pool", None)
        known = isinstance(pool, AttentionPoolLatent) and pool.pos_embed is None and trunk.num_prefix_tokens == 0
    if not known:
        raise UserError(
            f"no dense features for an image tower {type(visual).__name__} built like this; known are open_clip's "
            "VisionTransformer (class token, default blocks, no attention pool) and SigLIP's timm trunk"
        )


def patch_size(visual: nn.Module) -> Grid:
    """Height and width of a patch in pixels."""
    trunk: Any = visual.trunk.patch_embed if isinstance(visual, TimmModel) else visual
    down, across = trunk.patch_size
    return down, across


@torch.no_grad()
def dense_features(visual: nn.Module, pixel_values: Tensor, name: str) -> Tensor:
    """pixel_values (B, 3, H, W) -> embeddings (B, D, h, w) of the h x w patches, not L2-normalised.

    Args:
        visual: image tower of an open_clip model.
        pixel_values: preprocessed; H and W are multiples of the patch, at any size.
        name: a row of DENSE_METHODS.

    Raises:
        UserError: the tower is of another kind, or the method does not fit it.
    """
    method = get_dense_method(name)
    check_tower(visual)
    (height, width), (down, across) = pixel_values.shape[-2:], patch_size(visual)
    assert not (height % down or width % across), f"{height} x {width} is not a multiple of the patch"
    grid = (height // down, width // across)
    if isinstance(visual, VisionTransformer):
        features = _last_block(visual, pixel_values, grid, method)
    elif name == "maskclip":
        features = _value_path(visual, pixel_values, grid)
    else:
        raise UserError(
            f"dense method {name} needs a class token and a projection, which SigLIP's trunk does not have; "
            "take maskclip, the value path of its attention pool"
        )
    return features.transpose(1, 2).unflatten(2, grid)


def text_features(clip: Clip, names: Names) -> Tensor:
    """Embeddings (D, Q) of all names, L2-normalised: each the mean over the 80 templates of CLIP's ImageNet runs."""
    flat = [name for each in names for name in each]
    return clip.embed_classes(flat, open_clip.OPENAI_IMAGENET_TEMPLATES, at_once=CLASSES_AT_ONCE)


def _last_block(visual: VisionTransformer, pixel_values: Tensor, grid: Grid, method: DenseMethod) -> Tensor:
    """All blocks but the last as the model has them; the last as `method` says; (B, h * w, D)."""
    patches = visual.conv1(pixel_values).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    tokens = visual.ln_pre(tokens + _positions(visual.positional_embedding, visual.grid_size, grid))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        tokens = block(tokens)

    mha = last.attn
    qkv = linear(last.ln_1(tokens), mha.in_proj_weight, mha.in_proj_bias)
    q, k, v = (each.unflatten(2, (mha.num_heads, -1)).transpose(1, 2) for each in qkv.chunk(3, dim=-1))
    attended = last.ls_1(mha.out_proj(method.attend(q, k, v, grid).transpose(1, 2).flatten(2)))
    tokens = tokens + attended if method.residual else attended
    if method.feed_forward:
        tokens = tokens + last.ls_2(last.mlp(last.ln_2(tokens)))
    return visual.ln_post(tokens[:, 1:]) @ visual.proj


def _positions(embedding: Tensor, native: Grid, grid: Grid, prefix: int = 1) -> Tensor:
    """The positional embedding (prefix + n, C) for another grid, the prefix (class token) as it was.

    Bicubic by the factor (n + 0.1) / native, as DINO's code has it and all reference codes after it.
    """
    if grid == native:
        return embedding
    square = embedding[prefix:].unflatten(0, native).permute(2, 0, 1)[None]
    factor = [(wanted + 0.1) / had for wanted, had in zip(grid, native, strict=True)]
    resized = interpolate(square, scale_factor=factor, mode="bicubic")
    assert resized.shape[-2:] == grid
    return torch.cat([embedding[:prefix], resized[0].flatten(1).T])


def _value_path(visual: TimmModel, pixel_values: Tensor, grid: Grid) -> Tensor:
    """SigLIP: every patch pooled alone, (B, h * w, D).

    Its attention pool (AttentionPoolLatent: one latent query; key, value; projection; MLP) turns patches into the
    embedding that meets the texts. Of a single patch its softmax is 1, so the pool's own forward is then that patch's
    value path: MaskCLIP's idea, in the place where this tower has its attention to the whole picture.
    """
    trunk = visual.trunk
    tokens = trunk.patch_embed.norm(trunk.patch_embed.proj(pixel_values).flatten(2).transpose(1, 2))
    tokens = tokens + _positions(trunk.pos_embed[0], trunk.patch_embed.grid_size, grid, prefix=0)
    tokens = trunk.norm(trunk.blocks(trunk.norm_pre(tokens)))
    pooled = visual.head(trunk.forward_head(tokens.flatten(0, 1)[:, None]))
    return pooled.unflatten(0, (len(pixel_values), -1))

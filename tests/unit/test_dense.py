"""Dense features against formulas written out, and against open_clip's own forward."""

import math

import open_clip
import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch.nn.functional import interpolate, layer_norm, linear

from un2clip.errors import UserError
from un2clip.evaluation.dense.features import DENSE_METHODS, NEIGHBOURHOOD, dense_features, patch_size

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 8}


def new_visual(seed: int = 0, **changes: object) -> torch.nn.Module:
    torch.manual_seed(seed)
    visual = CLIP(embed_dim=12, vision_cfg=VISION | changes, text_cfg=TEXT).visual.eval()
    for parameter in visual.parameters():  # biases and layer norms that start as zeros and ones would hide a mistake
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return visual


def new_siglip() -> torch.nn.Module:
    torch.manual_seed(0)
    vision = {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"}
    kept = open_clip.timm_model.timm.create_model

    def small(*names: object, **options: object) -> torch.nn.Module:
        return kept(*names, **options, embed_dim=24, depth=2, num_heads=3, img_size=32, patch_size=8)

    open_clip.timm_model.timm.create_model = small
    try:
        return CustomTextCLIP(embed_dim=24, vision_cfg=vision | {"image_size": 32}, text_cfg=TEXT).visual.eval()
    finally:
        open_clip.timm_model.timm.create_model = kept


def pixels(*size: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def naive(visual, image, name, grid):
    """The published formulas, one token and one head at a time; earlier blocks by open_clip's forward_intermediates."""
    tokens = visual.forward_intermediates(image[None], indices=[1], output_extra_tokens=True)
    x = torch.cat([tokens["image_intermediates_prefix"][0][0], tokens["image_intermediates"][0][0].flatten(1).T])
    block, heads = visual.transformer.resblocks[2], 3
    y = layer_norm(x, (24,), block.ln_1.weight, block.ln_1.bias)
    q, k, v = linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias).reshape(-1, 3, heads, 8).unbind(1)

    def weights(a, b, bonus=0.0):
        return (torch.einsum("ihd,jhd->hij", a, b) / math.sqrt(8) + bonus).softmax(-1)

    omega = torch.zeros(len(x), len(x))
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    for a, (i, j) in enumerate(places):
        for b, (m, n) in enumerate(places):
            omega[a + 1, b + 1] = math.exp(-((i - m) ** 2 + (j - n) ** 2) / (2 * 5.0**2))
    attention = {
        "clip": lambda: weights(q, k),
        "maskclip": lambda: torch.eye(len(x)).expand(heads, -1, -1),
        "sclip": lambda: weights(q, q) + weights(k, k),
        "clearclip": lambda: weights(q, q),
        "naclip": lambda: weights(k, k, omega),
    }[name]()
    out = linear(
        torch.einsum("hij,jhd->ihd", attention, v).flatten(1), block.attn.out_proj.weight, block.attn.out_proj.bias
    )
    if name not in ("clearclip", "naclip"):
        out = x + out
        out = out + block.mlp(layer_norm(out, (24,), block.ln_2.weight, block.ln_2.bias))
    return layer_norm(out[1:], (24,), visual.ln_post.weight, visual.ln_post.bias) @ visual.proj


@pytest.mark.parametrize("name", DENSE_METHODS)
def test_last_block_of_each_method_by_its_formula(name: str) -> None:
    """Every method equals its published formula on explicit q, k, v; the grid is row by row."""
    assert NEIGHBOURHOOD == 5.0  # NACLIP's published number, written out in the formula above
    visual, images = new_visual(), pixels(32, 32)
    features = dense_features(visual, images, name)
    assert features.shape == (2, 12, 4, 4)
    for image, found in zip(images, features, strict=True):
        torch.testing.assert_close(found.flatten(1).T, naive(visual, image, name, (4, 4)), atol=2e-6, rtol=1e-5)


def test_methods_differ() -> None:
    """No two methods give the same features, so none of the rows is another one's copy."""
    visual = new_visual()
    found = [dense_features(visual, pixels(32, 32), name) for name in DENSE_METHODS]
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("quick", [False, True])
@torch.no_grad()
def test_untouched_last_block_is_open_clips_own_forward(quick: bool) -> None:
    """Method clip gives the tokens of open_clip's forward, projected; with and without QuickGELU and LayerScale."""
    visual = new_visual(ls_init_value=0.5 if quick else None)
    if quick:
        for block in visual.transformer.resblocks:
            block.mlp.gelu = open_clip.transformer.QuickGELU()
    visual.output_tokens = True
    theirs = visual(pixels(32, 32))[1] @ visual.proj
    torch.testing.assert_close(dense_features(visual, pixels(32, 32), "clip").flatten(2).transpose(1, 2), theirs)


@pytest.mark.parametrize("size", [(48, 48), (16, 40), (32, 64), (8, 8)])
@torch.no_grad()
def test_any_window_by_an_interpolated_positional_embedding(size: tuple[int, int]) -> None:
    """At another size, features are those of the same tower built for that size with the embedding interpolated."""
    visual, grid = new_visual(), (size[0] // 8, size[1] // 8)
    embedding = visual.positional_embedding
    square = embedding[1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    factor = tuple((n + 0.1) / 4 for n in grid) if grid != (4, 4) else (1.0, 1.0)
    resized = interpolate(square, scale_factor=factor, mode="bicubic").permute(0, 2, 3, 1).reshape(-1, 24)
    larger = new_visual(image_size=size)
    larger.load_state_dict(visual.state_dict() | {"positional_embedding": torch.cat([embedding[:1], resized])})
    larger.output_tokens = True
    theirs = (larger(pixels(*size))[1] @ larger.proj).transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(dense_features(visual, pixels(*size), "clip"), theirs, atol=2e-6, rtol=1e-5)
    assert torch.equal(visual.positional_embedding, embedding) and visual.positional_embedding.shape == (17, 24)


@pytest.mark.parametrize("size", [224, 336])
def test_real_sizes(size: int) -> None:
    """Windows of 224 and 336 px through a tower of 224 px and patches of 14: 16 x 16 and 24 x 24 features."""
    visual = new_visual(image_size=224, patch_size=14, layers=1)
    features = dense_features(visual, pixels(size, size, n=1), "clearclip")
    assert features.shape == (1, 12, size // 14, size // 14) and torch.isfinite(features).all()


@torch.no_grad()
def test_siglip_pools_every_patch_alone() -> None:
    """SigLIP: at its own size, patch i equals the pool's value path of trunk token i, written out without softmax."""
    visual, images = new_siglip(), pixels(32, 32)
    trunk, pool = visual.trunk, visual.trunk.attn_pool
    assert patch_size(visual) == (8, 8)
    value = pool.kv(trunk.forward_features(images))[..., 24:]
    theirs = pool.proj(value)
    theirs = theirs + pool.mlp(pool.norm(theirs))
    found = dense_features(visual, images, "maskclip")
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), theirs, atol=2e-6, rtol=1e-5)
    assert dense_features(visual, pixels(48, 16), "maskclip").shape == (2, 24, 6, 2)


def test_towers_and_methods_that_do_not_fit_are_refused() -> None:
    """One sentence for another method on SigLIP, for a tower without patches, and for an unknown method."""
    with pytest.raises(UserError, match="clearclip needs a class token and a projection.*take maskclip"):
        dense_features(new_siglip(), pixels(32, 32), "clearclip")
    for other in (new_visual(qk_norm=True), new_visual(final_ln_after_pool=True), torch.nn.Linear(1, 1)):
        with pytest.raises(UserError, match="no dense features for an image tower"):
            dense_features(other, pixels(32, 32), "clip")
    with pytest.raises(UserError, match="unknown dense method 'gem'; known: clip, maskclip, sclip, clearclip, naclip"):
        dense_features(new_visual(), pixels(32, 32), "gem")

"""The bank of captions, and how far an encoder's likeness to it has moved."""

import io
import itertools
import math

import numpy as np
import pytest
import scipy.fft
import scipy.stats
import torch
from PIL import Image
from torch.nn.functional import normalize

from tests.conftest import ROOT
from un2clip.config import build, read_params
from un2clip.datasets.caption_bank import Words, caption_bank, word_bank
from un2clip.datasets.shards import EncodedSample, Index, write_shards
from un2clip.datasets.shards import samples as read_samples
from un2clip.errors import UserError
from un2clip.methods.anchors import BandAnchor, CosineAnchor, caption_kl, embed_bank
from un2clip.methods.features import Features
from un2clip.models.clip import load_clip
from un2clip.stages.shapes import Shapes
from un2clip.world import scenes
from un2clip.world.writing import TEMPLATES


def test_the_bank_is_different_captions_of_training_images(tiny) -> None:
    """As many as asked, none twice, none that no training image has; the seed alone decides which."""
    bank = caption_bank(tiny.shards, seed=1, size=20)
    known = {sample.caption for sample in read_samples(tiny.shards / "train")}
    assert len(bank) == len(set(bank)) == 20 < len(known) and set(bank) < known
    assert bank == caption_bank(tiny.shards, seed=1, size=20) != caption_bank(tiny.shards, seed=2, size=20)
    assert set(caption_bank(tiny.shards, seed=1, size=10_000)) == known, "all, where there are fewer"


def write_captions(folder, captions: list[str]):
    """Shards of grey images with these captions."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    fields = {"image": image.getvalue(), "extension": "png", "metadata": None}
    listed = [EncodedSample(key=str(i), caption=caption, **fields) for i, caption in enumerate(captions)]
    train = write_shards(folder / "train", listed, 2)
    Index(splits={"train": train, "heldout": ()}, rejected={}, captions={}, damaged_tars={}).save(folder)
    return folder


def test_common_words_are_counted_once_a_caption(tmp_path) -> None:
    """By hand: of five captions "dog" stands in three, "brown" in two (once twice), the rest in one."""
    captions = ["a Brown dog, brown!", "the dog on the left", "dog 42", "a brown cat", "it is ok"]
    shards = write_captions(tmp_path, captions)
    words = {"captions": 100, "text": "a {word}", "leave_out": ()}
    assert word_bank(shards, Words(share=0.4, **words), seed=0) == ["a dog", "a brown"]
    assert word_bank(shards, Words(share=0.41, **words), seed=0) == ["a dog"]
    assert word_bank(shards, Words(share=0.1, **words), seed=0) == ["a dog", "a brown", "a cat", "a left", "a the"]
    assert word_bank(shards, Words(share=0.4, **words | {"leave_out": ("dog",)}), seed=0) == ["a brown"]
    with pytest.raises(UserError, match=r"no word stands in 90 % of the 5 captions of .*lower finetune.words.share"):
        word_bank(shards, Words(share=0.9, **words), seed=0)


def test_the_laptop_worlds_common_words_are_objects_and_colours(tmp_path) -> None:
    """With the numbers of params.yaml: the twelve words that captions nearly always name, no detail, and no prompt."""
    params = read_params(ROOT / "params.yaml")
    how, rng = build(Shapes, params["shapes"], "shapes"), np.random.default_rng(0)
    drawn = scenes.draw(rng, 3000, plain=how.plain, heldout=False)
    shards = write_captions(tmp_path, scenes.captions(rng, drawn, how.captions))
    bank = word_bank(shards, build(Words, params["finetune"]["words"], "words"), seed=0)
    assert set(bank) == {f"a {word}" for name in ("object", "colour") for word in scenes.ATTRIBUTES[name]}
    names = [f"{colour} {name}" for name in scenes.ATTRIBUTES["object"] for colour in scenes.ATTRIBUTES["colour"]]
    assert not set(bank) & {template.format(c=name) for template in TEMPLATES for name in names}


def test_data_without_captions_to_tell_apart_is_refused(tmp_path) -> None:
    """Every image with the same caption: nothing can be held on that, and the message names the way out."""
    write_captions(tmp_path, ["a photo"] * 3)
    with pytest.raises(
        UserError, match="two different ones, and .*train has 1; give `ingest` images with captions, or"
    ):
        caption_bank(tmp_path, seed=0, size=5)


def test_products_with_the_bank_are_clips_own_logits(tiny) -> None:
    """Against open_clip's get_logits, with more captions than go through the text tower at once."""
    clip = load_clip(tiny.backbones / "clip")
    texts = [f"{a} {b}" for a, b in itertools.product("abcdefghijklmnopqrst", repeat=2)]
    pixel_values = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, _ = clip.model.get_logits(pixel_values, clip.tokenize(texts))
    ours = normalize(clip.embed(pixel_values), dim=1) @ embed_bank(clip, texts).T
    assert ours.shape == (3, 400)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_divergence_against_scipy() -> None:
    """Kullback and Leibler's of the reference's softmax from the tuned one's; 0 for equal embeddings, to the bit."""
    rng = torch.Generator().manual_seed(0)
    tuned, reference = torch.randn(2, 5, 16, generator=rng)
    captions = 3 * normalize(torch.randn(7, 16, generator=rng), dim=1)
    found = caption_kl(tuned, reference, captions)
    p, q = (np.exp((normalize(x, dim=1) @ captions.T).double().numpy()) for x in (reference, tuned))
    assert found.tolist() == pytest.approx(scipy.stats.entropy(p, q, axis=1).tolist(), rel=1e-4)
    assert torch.equal(caption_kl(tuned, tuned.clone(), captions), torch.zeros(5))


def test_what_all_captions_share_costs_nothing() -> None:
    """Neither an embedding's length nor a direction that all captions have alike moves the divergence."""
    rng = torch.Generator().manual_seed(1)
    tuned, reference = torch.randn(2, 5, 16, generator=rng)
    captions, shared = torch.randn(7, 16, generator=rng), torch.randn(1, 16, generator=rng)
    found = caption_kl(tuned, reference, captions)
    for same in (
        caption_kl(3 * tuned, reference, captions),
        caption_kl(tuned, reference, captions + shared),
    ):
        torch.testing.assert_close(same, found)


def test_bf16_does_not_reach_the_logits() -> None:
    """Under autocast the divergence is that of float32: at a scale of 100 bf16 would round logits by halves."""
    rng = torch.Generator().manual_seed(2)
    reference = torch.randn(4, 64, generator=rng)
    tuned = reference + 0.01 * torch.randn(4, 64, generator=rng)
    captions = 100 * normalize(torch.randn(50, 64, generator=rng), dim=1)
    exact = caption_kl(tuned, reference, captions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(caption_kl(tuned, reference, captions), exact)
    assert not math.isclose(exact.sum().item(), 0.0)


def test_cosine_anchor_is_the_squared_difference_of_clips_logits(tiny) -> None:
    """Against open_clip's get_logits of both, by hand; equal embeddings give 0 to the bit, another length too."""
    clip, texts = load_clip(tiny.backbones / "clip"), ["a circle", "a red", "an arrow"]
    tuned, reference = torch.randn(2, 5, clip.embed_dim, generator=torch.Generator().manual_seed(0))
    anchor = CosineAnchor(embed_bank(clip, texts))
    words = normalize(clip.embed_texts(texts), dim=1) * clip.model.logit_scale.exp()
    logits = [(x / x.norm(dim=1, keepdim=True)) @ words.T for x in (tuned, reference)]
    found = anchor(Features(pooled=tuned), Features(pooled=reference))
    torch.testing.assert_close(found, ((logits[0] - logits[1]) ** 2).sum(dim=1) / 3)
    assert torch.equal(anchor(Features(pooled=tuned), Features(pooled=tuned)), torch.zeros(5))
    torch.testing.assert_close(anchor(Features(pooled=2 * tuned), Features(pooled=tuned)), torch.zeros(5))


@pytest.mark.parametrize("side", [4, 9, 16])
def test_band_anchor_against_scipy(side: int) -> None:
    """scipy's orthonormal DCT-II of the difference, cut to the lowest quarter of each axis; a high wave is free."""
    tuned, reference = torch.randn(2, 3, side * side, 6, generator=torch.Generator().manual_seed(0)).double()
    grid = (tuned - reference).numpy().reshape(3, side, side, 6)
    low = scipy.fft.dctn(grid, axes=(1, 2), norm="ortho")[:, : side // 4, : side // 4]
    anchor = BandAnchor()
    found = anchor(Features(pooled=None, tokens=tuned), Features(pooled=None, tokens=reference))
    torch.testing.assert_close(found, torch.tensor((low**2).mean(axis=(1, 2, 3))))
    waves = np.zeros((1, side, side, 1))
    waves[0, -1, 0] = 5
    wave = torch.tensor(scipy.fft.idctn(waves, axes=(1, 2), norm="ortho")).reshape(1, -1, 1)
    moved = Features(pooled=None, tokens=reference + wave)
    torch.testing.assert_close(
        anchor(moved, Features(pooled=None, tokens=reference)), torch.zeros(3).double(), atol=1e-9, rtol=0
    )
    with pytest.raises(UserError, match="12 patches are no square grid.*take another method"):
        anchor(Features(pooled=None, tokens=torch.zeros(1, 12, 2)), Features(pooled=None, tokens=torch.zeros(1, 12, 2)))

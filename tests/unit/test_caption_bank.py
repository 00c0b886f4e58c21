"""The bank of captions, and how far an encoder's likeness to it has moved."""

import io
import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torch.nn.functional import normalize

from un2clip.datasets.caption_bank import caption_bank
from un2clip.datasets.shards import EncodedSample, Index, samples, write_shards
from un2clip.errors import UserError
from un2clip.methods.anchors import caption_kl, embed_bank
from un2clip.models.clip import load_clip


def test_the_bank_is_different_captions_of_training_images(tiny) -> None:
    """As many as asked, none twice, none that no training image has; the seed alone decides which."""
    bank = caption_bank(tiny.shards, seed=1, size=20)
    known = {sample.caption for sample in samples(tiny.shards / "train")}
    assert len(bank) == len(set(bank)) == 20 < len(known) and set(bank) < known
    assert bank == caption_bank(tiny.shards, seed=1, size=20) != caption_bank(tiny.shards, seed=2, size=20)
    assert set(caption_bank(tiny.shards, seed=1, size=10_000)) == known, "all, where there are fewer"


def test_data_without_captions_to_tell_apart_is_refused(tmp_path) -> None:
    """Every image with the same caption: nothing can be held on that, and the message names the way out."""
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "png")
    fields = {"image": image.getvalue(), "extension": "png", "caption": "a photo", "metadata": None}
    train = write_shards(tmp_path / "train", [EncodedSample(key=str(i), **fields) for i in range(3)], 2)
    Index(splits={"train": train, "heldout": ()}, rejected={}, captions={}, damaged_tars={}).save(tmp_path)
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

"""DIVA's own protocol of MMVP-VLM against a loop over images and draws, and its two faults against its arithmetic."""

import statistics
import zlib

import pytest
import torch
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from PIL import Image

from un2clip.__main__ import main
from un2clip.config import merge
from un2clip.datasets import loader
from un2clip.datasets.faults import FaultConfig
from un2clip.decoders import load_generator
from un2clip.evaluation.benchmarks import mmvp_vlm
from un2clip.evaluation.draws import DrawingClip, drawn_scores
from un2clip.models.clip import load_clip, save_clip
from un2clip.stages import stage_params
from un2clip.stages.finetune import _cache, _reader
from un2clip.stages.finetune_job import Job


@torch.no_grad()
def naive(clip, folder, patches: int, draws: int, unit: bool = False) -> list[float]:
    """Percent of the pairs of which both statements choose their own image; ln_post and projection on all tokens."""
    visual, questions, scores = clip.model.visual, mmvp_vlm.read_questions(folder), []
    visual.output_tokens = True
    seen = [visual(clip.preprocess(Image.open(question.image))[None]) for question in questions]
    visual.output_tokens = False
    texts = [clip.model.encode_text(clip.tokenize([f"a photo of {question.statement}"]))[0] for question in questions]

    def likeness(statement: int, image: int, draw: int) -> float:
        """A statement's cosine to an image; patches are drawn anew for the first and the second of a pair."""
        (pooled, tokens), chosen = seen[image], list(range(16))
        if patches:
            name = f"{2 * draw + statement % 2} {questions[image].id}"
            chosen = torch.randint(16, (patches,), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        local = tokens[0, chosen] @ visual.proj
        if unit:
            local, pooled = torch.stack([token / token.norm() for token in local]), pooled / pooled.norm()
        embedded = pooled[0] + sum(local) / len(local)
        return float(texts[statement] @ embedded / embedded.norm())

    for draw in range(draws):
        right = [
            likeness(i, i, draw) > likeness(i, i + 1, draw) and likeness(i + 1, i, draw) <= likeness(i + 1, i + 1, draw)
            for i in range(0, len(questions), 2)
        ]
        scores.append(100 * sum(right) / len(right))
    return scores


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory) -> dict[str, object]:
    """A reference, a changed encoder, and the pairs."""
    clip = load_clip(tiny.backbones / "clip")
    with torch.no_grad():
        for parameter in clip.model.visual.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder = tmp_path_factory.mktemp("draws")
    save_clip(clip, folder / "changed")
    (folder / "reference").symlink_to(tiny.backbones / "clip")
    return {"clips": [folder / "reference", folder / "changed"], "data": tiny.benchmarks / "mmvp_vlm"}


def test_the_scores_are_the_naive_ones(given, capsys) -> None:
    """Eight draws, each its own; plain beside them, mean and deviation of them, the difference on the same draws."""
    drawn_scores("diva-openai", **given, draws=0, device="cpu", batch_size=6)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "diva-openai: the class token plus the mean of 76 patches drawn with replacement"
    clips, found = [load_clip(folder) for folder in given["clips"]], []
    for clip, line in zip(clips, lines[1:3], strict=True):
        scores = naive(clip, given["data"], 76, 8)
        items = mmvp_vlm.run(clip, given["data"], batch_size=6).items
        plain = 100 * statistics.fmean(item.value for item in items)
        listed = " ".join(f"{score:.1f}" for score in scores)
        mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
        assert line.endswith(f"plain {plain:.1f} %; drawn {mean:.2f}, deviation {deviation:.2f} over 8 ({listed})")
        found.append(scores)
    change = [after - before for before, after in zip(*found, strict=True)]
    above = sum(each > 0 for each in change)
    assert f": {statistics.fmean(change):+.2f}, deviation {statistics.stdev(change):.2f} over 8 (" in lines[3]
    assert lines[3].endswith(f"; above it in {above} of 8") and len(lines) == 4


def test_draws_differ_and_repeat_whatever_the_batch(tiny) -> None:
    """A draw is by its number and the image's name."""
    clip = load_clip(tiny.backbones / "clip")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = ["a/1.jpg", "a/2.jpg", "b/3.jpg"]
    first, second = (DrawingClip(**vars(clip), patches=4, unit=False, draw=draw) for draw in (0, 1))
    whole = first.embed(images, names)
    assert not torch.equal(whole, second.embed(images, names))
    parts = [
        DrawingClip(**vars(clip), patches=4, unit=False, draw=0).embed(images[i : i + 1], names[i : i + 1])
        for i in range(3)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


def test_with_all_patches_there_is_one_draw(given, capsys) -> None:
    """Each of length 1 first, as for MetaCLIP; one score, which is the naive one."""
    drawn_scores("diva-metaclip", **given, draws=0, device="cpu", batch_size=6)
    lines = capsys.readouterr().out.splitlines()
    for folder, line in zip(given["clips"], lines[1:3], strict=True):
        (score,) = naive(load_clip(folder), given["data"], 0, 1, unit=True)
        assert line.endswith(f"drawn {score:.2f}, deviation 0.00 over 1 ({score:.1f})")


def test_the_command_says_what_is_wrong(tiny, capsys) -> None:
    """An unknown protocol, too few draws."""
    given = [f"--data={tiny.benchmarks / 'mmvp_vlm'}", f"--clip={tiny.backbones / 'clip'}"]
    for words, message in (
        (["diva", *given], "unknown protocol 'diva'; known: diva-openai, diva-metaclip"),
        (["diva-openai", *given, "--draws=3"], "draws must be at least 8, since one draw says little; got 3"),
    ):
        assert main(["draws", *words])
        assert message in capsys.readouterr().err


def picture() -> Image.Image:
    pixels = torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_the_decoders_fault_is_divas_arithmetic() -> None:
    """(x - m) / s by OpenAI's numbers, brought back by ImageNet's; and nothing where it is off."""
    view = loader.generator_view(32)
    own, off = view(picture()), FaultConfig(decoder=False, encoder=True).decoder_view(view)(picture())
    assert torch.equal(own, off)
    numbers = (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, IMAGENET_MEAN, IMAGENET_STD)
    mean, std, back_mean, back_std = (torch.tensor(each)[:, None, None] for each in numbers)
    wanted = 2 * (((own + 1) / 2 - mean) / std * back_std + back_mean) - 1
    found = FaultConfig(decoder=True, encoder=False).decoder_view(view)(picture())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert (found - own).abs().max() > 0.05


def test_the_encoders_fault_is_openais_numbers() -> None:
    """SigLIP's own are halves; of OpenAI's own encoder nothing changes."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    view, fault = loader.generator_view(32), FaultConfig(decoder=False, encoder=True)
    shares = (view(picture()) + 1) / 2
    found = fault.encoder_view(view, (0.5,) * 3, (0.5,) * 3)(picture())
    torch.testing.assert_close(found, (shares - mean) / std, rtol=1e-5, atol=1e-5)
    openais = lambda image: (((view(image) + 1) / 2) - mean) / std  # noqa: E731
    same = fault.encoder_view(openais, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)(picture())
    torch.testing.assert_close(same, openais(picture()), rtol=1e-5, atol=1e-5)


def test_a_training_reads_its_images_by_them(tiny, tmp_path) -> None:
    """The stage's reader has the faults' views, and cached latents are of unchanged images, so they are not read."""
    for faults in ({"decoder": False, "encoder": False}, {"decoder": True, "encoder": True}):
        section = merge(tiny.params["finetune"], {"faults": faults})
        folders = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents, "encoder": tmp_path}
        job = Job(
            params=stage_params("finetune", section), method="un2clip", seed=0, device="cpu", checkpoints="", **folders
        )
        clip, decoder = load_clip(tiny.backbones / "clip"), load_generator(tiny.backbones / "unclip")
        cached = _cache(job, decoder, job.params.phases["tune"])
        assert (cached is None) == faults["decoder"]
        sample = _reader(job, clip, decoder, None)[loader.SampleIndex(0, 0)]
        plain = loader.open_split(tiny.shards, "train", clip.preprocess, loader.generator_view(decoder.image_px))
        unchanged = plain[loader.SampleIndex(0, 0)]
        assert torch.equal(sample["images"], unchanged["images"]) != faults["decoder"]

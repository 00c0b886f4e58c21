"""Benchmark `reconstruction`: its numbers against formulas written out, its pictures against a loop, its refusals."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import resize_pos_embed
from PIL import Image
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from torchmetrics.functional.image import peak_signal_noise_ratio

from tests.sharing import shared
from un2clip.config import build, merge
from un2clip.decoders.kinds import load_decoder
from un2clip.errors import UserError
from un2clip.evaluation.autoencoding import Autoencoder, open_autoencoder
from un2clip.evaluation.benchmarks.reconstruction import Options, decibels, likeness, run
from un2clip.evidence.scores import collect_scores
from un2clip.hashes import file_sha256
from un2clip.methods.conditions import load_condition
from un2clip.methods.features import Encoder, Features
from un2clip.models.clip import load_clip
from un2clip.stages import run_stage


@pytest.fixture(scope="module")
def encoders(tiny, tmp_path_factory) -> dict[str, Path]:
    """Row -> what its fine-tuning leaves, after three steps a phase."""
    folder = tmp_path_factory.mktemp("reconstruction")
    return {method: tune(tiny, method, folder / method, {}) for method in ("unilip", "genhancer")}


def tune(tiny, method: str, encoder: Path, phases: dict[str, object]) -> Path:
    quick = {"unilip-1": {"lr": {"condition": 1e-2, "decoder": 1e-2}}}
    section = merge(tiny.params["finetune"], {"phases": quick | phases})
    names = {"method": method, "seed": 3, "device": "cpu", "checkpoints": ""}
    folders = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents}
    run_stage("finetune", section, **names, **folders, encoder=encoder)
    return encoder


def options(tiny, **changes: object) -> Options:
    return build(Options, tiny.params["evaluate"]["reconstruction"] | changes, "evaluate.reconstruction")


def opened(tiny, encoder: Path) -> dict[str, Autoencoder]:
    folders = {"reference": tiny.backbones / "clip", "tuned": encoder}
    return {role: open_autoencoder(load_clip(folder), role, encoder) for role, folder in folders.items()}


def pictures(tiny) -> dict[str, Image.Image]:
    with tarfile.open(tiny.benchmarks / "reconstruction/0.tar") as tar:
        return {each.name[:-4]: Image.open(io.BytesIO(tar.extractfile(each).read())) for each in tar.getmembers()}


def by_hand(picture: Image.Image, clip, folder: Path) -> float:
    """PSNR of one picture of the encoder's own side, the condition and decoder read from a folder."""
    wanted = np.asarray(picture, np.float64) / 255
    with torch.no_grad():
        given = clip.model.visual.forward_intermediates(
            clip.preprocess(picture)[None], indices=1, output_fmt="NLC", normalize_intermediates=True
        )
        features, decoder = (
            Features(pooled=None, tokens=given["image_intermediates"][0]),
            load_decoder(folder / "decoder"),
        )
        told = load_condition(folder / "condition", features, decoder)(features, {})
        drawn = decoder.decoder(told.spatial)[0].permute(1, 2, 0).double().numpy()
    return 10 * np.log10(1 / np.mean((np.clip((drawn + 1) / 2, 0, 1) - wanted) ** 2))


def test_seven_shares_find_the_same(tiny, encoders, tmp_path) -> None:
    """Features of the set's distance too."""
    models = opened(tiny, encoders["unilip"])
    shared(
        lambda spread: run(
            models["tuned"], tiny.benchmarks / "reconstruction", batch_size=3, options=options(tiny),
            reference=models["reference"], spread=spread,
        ),
        tmp_path,
    )  # fmt: skip


def test_the_stage_scores_both_encoders(tiny, encoders, tmp_path) -> None:
    """The tuned one through its condition and decoder; the reference through those of the phase before it moved."""
    names = {"benchmark": "reconstruction", "device": "cpu", "benchmarks": tiny.benchmarks, "backbones": tiny.backbones}
    names["checkpoints"] = ""
    for scores in ("first", "second"):
        run_stage("evaluate", tiny.params["evaluate"], **names, encoder=encoders["unilip"], scores=tmp_path / scores)
    made = [path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*.*")]
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in made)
    found = collect_scores([tmp_path / "first"])
    assert {name: pair["tuned"].unit for name, pair in found.items()} == {
        "reconstruction": "dB", "reconstruction-ssim": "SSIM", "reconstruction-frechet": "Frechet",
    }  # fmt: skip
    for role, clip, folder in (
        ("reference", load_clip(tiny.backbones / "clip"), encoders["unilip"] / "aligned"),
        ("tuned", load_clip(encoders["unilip"]), encoders["unilip"]),
    ):
        wanted = {name: by_hand(picture, clip, folder) for name, picture in pictures(tiny).items()}
        assert {item.id: item.value for item in found["reconstruction"][role].items} == pytest.approx(wanted, abs=1e-3)
    said = found["reconstruction"]["tuned"].protocol
    assert "32 px" in said and "64 numbers an image" in said and "trained for it" in said
    assert found["reconstruction-frechet"]["reference"].number != found["reconstruction-frechet"]["tuned"].number
    assert (tmp_path / "first/reconstruction.png").is_file()


def test_without_what_was_aligned_both_are_seen_through_the_tuned_ones(tiny, encoders, tmp_path) -> None:
    """As where all trains in one phase; and the protocol says so, so the two are never compared."""
    copy = shutil.copytree(encoders["unilip"], tmp_path / "encoder")
    shutil.rmtree(copy / "aligned")
    model = opened(tiny, copy)["reference"]
    result = run(model, tiny.benchmarks / "reconstruction", batch_size=4, options=options(tiny))
    clip = load_clip(tiny.backbones / "clip")
    wanted = [by_hand(picture, clip, copy) for picture in pictures(tiny).values()]
    assert [item.value for item in result.items] == pytest.approx(wanted, abs=1e-3)
    assert "both encoders through the condition and decoder of the tuned one" in result.protocol
    assert list(result.also) == ["ssim"], "without an untouched encoder there are no features for a distance"


def test_psnr_is_torchmetrics_and_has_an_end() -> None:
    """Image by image at data range 1; a picture that is given back to the bit has 100 dB."""
    drawn, images = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = peak_signal_noise_ratio(drawn, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(decibels(drawn, images).float(), wanted)
    assert decibels(images, images).tolist() == [100.0] * 3


def naive_ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """Of (H, W, 3), channel by channel, over the whole picture, which goes on beyond its edge as its reflection."""
    first, second, values = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2, []
    for x, y in zip(np.moveaxis(a, 2, 0), np.moveaxis(b, 2, 0), strict=True):
        mx, my, xx, yy, xy = (
            gaussian_filter(each, 1.5, truncate=3.5, mode="mirror") for each in (x, y, x * x, y * y, x * y)
        )
        covered = (2 * mx * my + first) * (2 * (xy - mx * my) + second)
        values.append((covered / ((mx**2 + my**2 + first) * (xx - mx**2 + yy - my**2 + second))).mean())
    return float(np.mean(values))


def test_ssim_is_the_formula_at_data_range_1() -> None:
    """Against the definition with scipy's filter; a data range of 2, which UniLIP's code has, would read higher."""
    images = 0.3 * torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    drawn = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    pairs = [
        (d.permute(1, 2, 0).double().numpy(), i.permute(1, 2, 0).double().numpy())
        for d, i in zip(drawn, images, strict=True)
    ]
    found = likeness(drawn, images).tolist()
    assert found == pytest.approx([naive_ssim(*pair, 1.0) for pair in pairs], abs=1e-6)
    assert all(naive_ssim(*pair, 2.0) > value + 0.02 for pair, value in zip(pairs, found, strict=True))
    assert likeness(images, images).tolist() == pytest.approx([1.0] * 3)
    grey = torch.full((1, 3, 16, 16), 0.25), torch.full((1, 3, 16, 16), 0.75)
    assert likeness(*grey).item() == pytest.approx((2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4))


def test_the_distance_is_the_formula(tiny, encoders) -> None:
    """Of the untouched encoder's embeddings of the pictures and of what is drawn, by scipy's matrix root."""
    models, folder = opened(tiny, encoders["unilip"]), tiny.benchmarks / "reconstruction"
    how = {"batch_size": 4, "options": options(tiny), "reference": models["reference"]}
    result = run(models["tuned"], folder, **how).also["frechet"]
    images = torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) / 255 for each in pictures(tiny).values()])
    drawn = models["tuned"].reconstruct(images, [])
    (m1, c1), (m2, c2) = (
        (each.mean(0), np.cov(each.T))
        for each in (models["reference"].features(x).double().numpy() for x in (images, drawn))
    )
    wanted = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * np.real(sqrtm(c1 @ c2)))
    assert result.number == pytest.approx(wanted, rel=1e-3, abs=1e-5) and result.items == ()
    assert "6 images; features of the untouched encoder's 16 features" in result.protocol


def test_pictures_between_cells_are_padded_by_reflection(tiny, encoders) -> None:
    """28 px are 4 cells of 8 px after 2 px of reflection on each side, which are cut off again: UniLIP's 256 px."""
    model = opened(tiny, encoders["unilip"])["tuned"]
    images = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    padded = torch.from_numpy(np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect"))
    torch.testing.assert_close(model.reconstruct(images, []), model.reconstruct(padded, [])[..., 2:-2, 2:-2])
    result = run(model, tiny.benchmarks / "reconstruction", batch_size=4, options=options(tiny, image_px=28))
    assert "28 px, shortest side and centre crop, padded to 32 by reflection" in result.protocol


def test_another_side_is_read_as_open_clip_resizes(tiny, encoders) -> None:
    """At 48 px the tower equals one that open_clip made for them; at its own side it is as it was, to the bit."""
    clip = load_clip(tiny.backbones / "clip")
    pixel_values, encoder = torch.randn(2, 3, 48, 48), Encoder(clip.model.visual, "raw")
    before = {name: value.clone() for name, value in clip.model.visual.state_dict().items()}
    cfg = clip.config["model_cfg"]
    other = open_clip.model.CLIP(cfg["embed_dim"], cfg["vision_cfg"] | {"image_size": 48}, cfg["text_cfg"]).eval()
    state = clip.model.state_dict()
    resize_pos_embed(state, other)
    other.load_state_dict(state)
    with torch.no_grad():
        found, again = encoder(pixel_values), encoder(pixel_values[..., :32, :32])
        wanted = Encoder(other.visual, "raw")(pixel_values)
    torch.testing.assert_close(found.pooled, wanted.pooled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.tokens, wanted.tokens, rtol=1e-5, atol=1e-6)
    assert torch.equal(again.pooled, clip.embed(pixel_values[..., :32, :32]))
    after = clip.model.visual.state_dict()
    assert list(after) == list(before) and all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(UserError, match="^a side of 50 px is not a multiple of the encoder's patch of 8 px$"):
        encoder(torch.zeros(1, 3, 50, 50))
    model = opened(tiny, encoders["unilip"])["tuned"]
    result = run(model, tiny.benchmarks / "reconstruction", batch_size=4, options=options(tiny, image_px=48))
    assert "144 numbers an image" in result.protocol and "padded" not in result.protocol


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("clip", "has no condition/ and decoder/ of its own, as method unilip leaves them"),
        ("genhancer", "decoder draws depends on noise, so it gives no picture back; `un2clip reconstruct` shows"),
    ],
)
def test_rows_that_draw_from_noise_are_refused(tiny, encoders, method: str, message: str) -> None:
    """One that trained neither condition nor decoder, as all un2clip rows, and one whose decoder is a flow."""
    with pytest.raises(UserError, match=message):
        open_autoencoder(
            load_clip(tiny.backbones / "clip"), "tuned", (encoders | {"clip": tiny.backbones / "clip"})[method]
        )


def test_a_folder_of_pictures_does_as_a_tar(tiny, encoders, tmp_path) -> None:
    """At any depth, by their paths; one that is broken, or alone, is named; nothing else is opened."""
    for name, picture in pictures(tiny).items():
        (tmp_path / "deep").mkdir(exist_ok=True)
        picture.save(tmp_path / f"deep/{name}.png")
    model = opened(tiny, encoders["unilip"])["tuned"]
    how = {"batch_size": 4, "options": options(tiny)}
    mine, theirs = run(model, tmp_path, **how), run(model, tiny.benchmarks / "reconstruction", **how)
    assert [(item.id, item.value) for item in mine.items] == [(f"deep/{i.id}.png", i.value) for i in theirs.items]
    (tmp_path / "deep/000001.png").write_text("<html>")
    with pytest.raises(UserError, match=r"deep/000001.png is not a readable image"):
        run(model, tmp_path, **how)
    for path in sorted(tmp_path.rglob("*.png"))[1:]:
        path.unlink()
    with pytest.raises(UserError, match="holds 1 images, and a distance of sets needs two at least"):
        run(model, tmp_path, **how)
    next(tmp_path.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="holds no tars, and no images"):
        run(model, tmp_path, **how)


def test_rfid_needs_weights_that_are_what_they_should_be(tiny, encoders, tmp_path) -> None:
    """A hash beside the file, the file, and that hash; nothing is ever fetched."""
    weights = tmp_path / "inception.pth"
    weights.write_bytes(b"weights")
    with pytest.raises(UserError, match="inception must name one file, got a, b"):
        options(tiny, inception={"a": "0", "b": "0"})
    model = opened(tiny, encoders["unilip"])["tuned"]
    for path, sha256, message in (
        (tmp_path / "absent", "0" * 64, "^evaluate.reconstruction.inception: cannot read .*absent: No such file"),
        (weights, "0" * 64, f"is not what was pinned: wanted SHA-256 0{{64}}, found {file_sha256(weights)}"),
    ):
        with pytest.raises(UserError, match=message):
            how = options(tiny, inception={str(path): sha256})
            run(model, tiny.benchmarks / "reconstruction", batch_size=4, options=how)
    with pytest.raises(UserError, match="^evaluate.reconstruction.image_px must be 0 or at least 11"):
        options(tiny, image_px=8)


def test_features_that_are_not_finite_have_no_score(tiny, encoders) -> None:
    """As every benchmark: the picture is named."""
    model = opened(tiny, encoders["unilip"])["tuned"]
    with torch.no_grad():
        model.encoder.visual.ln_post.weight.fill_(3e38)
    with pytest.raises(UserError, match="the embedding of image 000000 is not finite, or zero"):
        run(model, tiny.benchmarks / "reconstruction", batch_size=4, options=options(tiny))


def test_a_decoder_that_would_stretch_the_picture_is_refused(tiny, encoders, tmp_path) -> None:
    """Cells of 8 px that are drawn 4 px wide: said before anything trains."""
    size = tiny.params["finetune"]["scratch"]["pixels"] | {
        "decoder_block_out_channels": [8, 16, 16], "decoder_layers_per_block": [1, 1, 1]
    }  # fmt: skip
    section = merge(tiny.params["finetune"], {"scratch": {"pixels": size}})
    names = {"method": "unilip", "seed": 3, "device": "cpu", "checkpoints": ""}
    folders = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": tiny.latents}
    with pytest.raises(UserError, match="^the pixel decoder draws 4 px of a cell, 16 of 32 px of 4 cells: that would"):
        run_stage("finetune", section, **names, **folders, encoder=tmp_path / "encoder")
    assert not (tmp_path / "encoder").exists()


def test_what_is_aligned_is_the_first_phases_end(tiny, encoders, tmp_path) -> None:
    """The same bytes as a training whose second phase has a rate of 0 ends with; both parts have moved on since."""
    still = {"lr": {"encoder": 0.0, "condition": 0.0, "decoder": 0.0}, "weight_decay": 0.0, "ema_decay": 0.0}
    made = tune(tiny, "unilip", tmp_path / "still", {"unilip-2": still})
    for name in ("condition/condition.safetensors", "decoder/decoder.safetensors"):
        aligned, last = encoders["unilip"] / "aligned" / name, encoders["unilip"] / name
        assert file_sha256(aligned) == file_sha256(made / name) == file_sha256(made / "aligned" / name)
        assert file_sha256(aligned) != file_sha256(last)
    said = json.loads((encoders["unilip"] / "aligned/condition/condition.json").read_text())
    assert said["condition"] == "spatial" and said["config"]["spatial"] == {"merge": 1, "blocks": 3}
    assert not (encoders["genhancer"] / "aligned").exists(), "its pictures are drawn from noise"

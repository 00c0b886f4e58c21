"""The latents cache: what is in it, when it is kept, and when it is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from un2clip.config import build, merge
from un2clip.datasets import loader
from un2clip.datasets.latents import latents_sha256, made_of, open_latents, read_cache
from un2clip.decoders import load_generator
from un2clip.errors import UserError
from un2clip.methods.table import METHODS
from un2clip.stages import run_stage
from un2clip.stages.finetune_job import Finetune
from un2clip.stages.latents import _no_view


def encode(tiny, to: Path, shards: Path | None = None, **changes: object) -> Path:
    section = tiny.params["latents"] | changes
    run_stage("latents", section, device="cpu", shards=shards or tiny.shards, backbones=tiny.backbones, latents=to)
    return to


def finetune(tiny, latents: Path, encoder: Path, method: str = "un2clip-anchored") -> list[dict[str, float]]:
    words = {"method": method, "seed": 3, "device": "cpu", "checkpoints": ""}
    paths = {"shards": tiny.shards, "backbones": tiny.backbones, "latents": latents, "encoder": encoder}
    run_stage("finetune", tiny.params["finetune"], **words, **paths)
    return json.loads((encoder / "history.json").read_text())


def bytes_below(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_cache_holds_what_the_vae_makes(tiny) -> None:
    """Every sample of both splits: the cached latents are the generator's own, image by image."""
    generator = load_generator(tiny.backbones / "unclip")
    cached = open_latents(tiny.latents, tiny.shards, generator.vae_sha256())
    assert cached is not None
    for split, total in (("train", 192), ("heldout", 48)):
        reader = loader.open_split(tiny.shards, split, _no_view, loader.generator_view(32))
        batches = list(loader.read(reader, loader.batched(loader.in_order(reader.sizes), 1), 0))
        assert len(batches) == total
        for batch, (shard, number, _) in zip(batches, loader.in_order(reader.sizes), strict=True):
            latents = cached.read(reader.folder / reader.listed[shard].name, number)
            torch.testing.assert_close(latents[None], generator.encode(batch["images"]), rtol=0, atol=1e-5)


def test_training_is_the_same_with_and_without_the_cache(tiny, tmp_path) -> None:
    """Crops are deterministic, so the losses of every step agree, within what another batch size rounds."""
    without = finetune(tiny, encode(tiny, tmp_path / "none", cache=False), tmp_path / "a")
    for row, other in zip(without, finetune(tiny, tiny.latents, tmp_path / "b"), strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert [path.name for path in (tmp_path / "none").rglob("*")] == ["latents.json"]


def test_half_precision_is_half_as_large(tiny, tmp_path) -> None:
    """float16 files hold the same numbers within its rounding."""
    made = encode(tiny, tmp_path / "half", dtype="float16")
    for path in made.rglob("*.safetensors"):
        half, full = load_file(path)["latents"], load_file(tiny.latents / path.relative_to(made))["latents"]
        assert half.dtype == torch.float16
        torch.testing.assert_close(half.float(), full, rtol=1e-3, atol=1e-3)


def test_another_precision_is_measured_against_fp32_and_not_mixed_with_it(tiny, tmp_path, capsys) -> None:
    """bf16's error of the first batch is as a naive formula has it; fp32 over it gives fp32's bytes, all made anew.

    The diffusion loss says what it was measured on. tf32 changes nothing on a CPU: its error is 0.
    """
    made = encode(tiny, tmp_path / "l", precision="bf16", batch_size=4)
    cache = read_cache(made)
    split = next(iter(cache.sha256)).split("/")[0]
    first, exact = (folder / split / "00000.safetensors" for folder in (made, tiny.latents))
    bf16, fp32 = (load_file(path)["latents"][:4] for path in (first, exact))
    error = ((bf16 - fp32).square().sum() / fp32.square().sum()).sqrt().item()
    assert cache.precision == "bf16" and cache.error == pytest.approx(error, rel=1e-4) and 1e-4 < error < 0.1
    said = f"latents: in bf16 those of the first batch are {cache.error:.1e} off those in fp32"
    assert said in capsys.readouterr().out and not list(made.glob(".*"))
    stamps = {path: path.stat().st_mtime_ns for path in made.rglob("*.safetensors")}
    max(stamps).unlink()
    encode(tiny, made, precision="bf16", batch_size=4)
    assert {path for path in stamps if path.stat().st_mtime_ns != stamps[path]} == {max(stamps)}
    assert said in capsys.readouterr().out
    words = {"seed": 3, "device": "cpu", "shards": tiny.shards, "backbones": tiny.backbones, "latents": made}
    run_stage(
        "diffusion_loss", tiny.params["diffusion_loss"], **words, encoder=tiny.backbones / "clip", scores=tmp_path / "s"
    )
    assert json.loads((tmp_path / "s/tuned.json").read_text())["protocol"].endswith("; latents made in bf16")
    encode(tiny, made)
    assert bytes_below(made) == bytes_below(tiny.latents) and made_of(first) == made_of(exact)
    encode(tiny, made, precision="tf32")
    assert read_cache(made).error == 0 and made_of(first).endswith(" float32 tf32")


def test_readers_change_no_byte(tiny, tmp_path) -> None:
    """One worker reads ahead over the shards; batches that are no divisor of a shard end with it all the same."""
    made = [encode(tiny, tmp_path / str(workers), workers=workers, batch_size=7) for workers in (0, 1)]
    before, found = ([path.read_bytes() for path in sorted(folder.rglob("*.*"))] for folder in made)
    assert before == found and len(found) > 2


def test_what_is_there_is_kept_and_what_is_not_is_made(tiny, tmp_path) -> None:
    """A second run writes only the file that is missing, removes what belongs to no shard, mends what is broken."""
    made = encode(tiny, tmp_path / "l")
    first, second = sorted((made / "train").glob("*.safetensors"))[:2]
    before = {path: path.read_bytes() for path in made.rglob("*.safetensors")}
    save_file({"latents": torch.zeros(2, 4, 8, 8)}, made / "train/99999.safetensors")
    first.unlink()
    second.write_bytes(second.read_bytes()[:50])
    untouched = sorted((made / "heldout").glob("*"))[0]
    stamp = untouched.stat().st_mtime_ns
    encode(tiny, made)
    assert {path: path.read_bytes() for path in made.rglob("*.safetensors")} == before
    assert untouched.stat().st_mtime_ns == stamp


def test_another_vae_or_other_shards_are_refused(tiny, tmp_path) -> None:
    """The cache is keyed by the VAE and by each shard."""
    generator = load_generator(tiny.backbones / "unclip")
    with torch.no_grad():
        generator.vae.encoder.conv_in.weight.mul_(1.01)
    with pytest.raises(UserError, match="was made by VAE .* run `un2clip latents` again"):
        open_latents(tiny.latents, tiny.shards, generator.vae_sha256())
    generator = load_generator(tiny.backbones / "unclip")
    shutil.copytree(tiny.latents, tmp_path / "l")
    next((tmp_path / "l/heldout").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="has no latents of heldout/00000.tar; run `un2clip latents` again"):
        open_latents(tmp_path / "l", tiny.shards, generator.vae_sha256())


def rewritten(path: Path, change) -> None:
    """Write a file of the cache again with other latents and the same description."""
    description = {"made_of": made_of(path)}
    save_file({"latents": change(load_file(path)["latents"]).contiguous()}, path, metadata=description)


def test_latents_that_nobody_made_are_refused(tiny, tmp_path) -> None:
    """Negated, or those of another file under this one's name: neither is trained on, and `latents` mends both."""
    made = shutil.copytree(tiny.latents, tmp_path / "l")
    files = sorted((made / "train").glob("*.safetensors"))
    first, second = files[:2]
    before = first.read_bytes()
    for path in files:
        rewritten(path, torch.neg)
    with pytest.raises(UserError, match=r"train/0000\d.safetensors is not what `un2clip latents` wrote"):
        finetune(tiny, made, tmp_path / "a")
    shutil.copy(second, first)
    with pytest.raises(UserError, match=r"train/00000.safetensors is of another VAE or another shard"):
        finetune(tiny, made, tmp_path / "a")
    encode(tiny, made)
    assert first.read_bytes() == before
    rewritten(first, torch.neg)
    encode(tiny, made)
    assert first.read_bytes() == before


def test_the_lineage_has_the_hash_of_the_latents(tiny, tmp_path) -> None:
    """float16 files are other latents, and a training without a cache has none."""
    finetune(tiny, tiny.latents, tmp_path / "a")
    finetune(tiny, encode(tiny, tmp_path / "half", dtype="float16"), tmp_path / "b")
    finetune(tiny, encode(tiny, tmp_path / "none", cache=False), tmp_path / "c")
    found = [json.loads((tmp_path / name / "lineage.json").read_text())["parents"].get("latents") for name in "abc"]
    assert found == [latents_sha256(tiny.latents), latents_sha256(tmp_path / "half"), None] and found[0] != found[1]


def test_a_phase_of_another_size_encodes_its_own_latents(tiny, tmp_path) -> None:
    """Half the side is a quarter of the latent, which no cache holds; a side that the VAE cannot take is refused."""
    generator = load_generator(tiny.backbones / "unclip")
    generator.resize(16)
    assert generator.target_shape == (4, 4, 4)
    assert generator.target({"images": torch.zeros(2, 3, 16, 16)}).shape == (2, 4, 4, 4)
    losses = {}
    for image_px in (0, 16):
        section = merge(tiny.params["finetune"], {"phases": {"tune": {"image_px": image_px}}})
        history = finetune(dataclasses.replace(tiny, params={"finetune": section}), tiny.latents, tmp_path / "e")
        losses[image_px] = [row["loss"] for row in history]
    assert len(losses[0]) == len(losses[16]) and losses[0] != losses[16]
    section = merge(tiny.params["finetune"], {"phases": {"tune": {"image_px": 30}}})
    with pytest.raises(UserError, match="image_px must be a multiple of 4, the VAE's step, got 30"):
        finetune(dataclasses.replace(tiny, params={"finetune": section}), tiny.latents, tmp_path / "e")


@pytest.mark.parametrize("method", ["un2clip", "genhancer"])
def test_frozen_bf16_reads_the_cache_of_the_vae_as_it_was_read(tiny, tmp_path, method: str) -> None:
    """The VAE is cast for the training, in every phase; the latents are those that its float32 weights made."""
    section = merge(tiny.params["finetune"], {"compute": {"precision": "bf16", "frozen": "bf16"}})
    history = finetune(dataclasses.replace(tiny, params={"finetune": section}), tiny.latents, tmp_path / "e", method)
    phases = build(Finetune, section, "finetune").phases_of(METHODS[method])
    assert len(history) == sum(phase.steps for phase in phases)
    assert "latents" in json.loads((tmp_path / "e/lineage.json").read_text())["parents"]

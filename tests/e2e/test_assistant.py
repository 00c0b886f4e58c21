"""An assistant trained by the real stage: same encoders, encoders that differ unseen, kills, processes, and asking."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.conversing import CLIP, write_encoder, write_instructions
from tests.mllm_sets import noise
from un2clip import tracking
from un2clip.config import build, merge, read_params
from un2clip.datasets.images import decode
from un2clip.errors import Stopped, UserError
from un2clip.evaluation.mllm.llava import load_llava
from un2clip.hashes import file_sha256
from un2clip.models.clip import encoder_sha256
from un2clip.stages.assistant import assistant
from un2clip.stages.assistant_job import Assistant

ROOT = Path(__file__).parents[2]
NUMBERS = read_params(ROOT / "params.yaml", [ROOT / "tests/e2e/tiny.yaml"])["assistant"]
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["un2clip.stages.assistant"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """instructions/, and backbones/clip: the laptop pair's encoder."""
    folder = tmp_path_factory.mktemp("assistant")
    write_instructions(folder / "instructions")
    (folder / "backbones").mkdir()
    (folder / "backbones/clip").symlink_to(CLIP)
    return folder


def train(data: Path, to: Path, encoder: Path | None = None, seed: int = 0, **changes: Any) -> Path:
    """An assistant of that encoder; without one, of the folder of backbones."""
    assistant(
        build(Assistant, merge(NUMBERS, changes), "assistant"),
        language_seed=seed, device="cpu", checkpoints=str(to.parent / "state"), instructions=data / "instructions",
        encoder=encoder or data / "backbones", assistant=to,
    )  # fmt: skip
    return to


@pytest.fixture(scope="module")
def reference(data: Path) -> Path:
    return train(data, data / "assistants" / "reference")


def differing(first: Path, second: Path) -> set[str]:
    """Names of tensors that are not equal bit by bit."""
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def assert_close(first: Path, second: Path) -> None:
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5, msg=name)


def answers(folder: Path) -> list[str]:
    """What it says to four pictures, in float32."""
    llava = load_llava(folder, torch.device("cpu"), dtype="float32", max_new_tokens=5)
    prompt = llava.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is the colour?"}]}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    images = [decode(noise(i, (30, 20 + i))) for i in range(4)]
    inputs = llava.processor(images=images, text=[prompt] * 4, padding=True, return_tensors="pt")
    said = llava.model.generate(**inputs, do_sample=False, max_new_tokens=5)
    return llava.processor.batch_decode(said)


def test_one_encoder_in_both_roles_is_one_assistant(data: Path, reference: Path, tmp_path: Path) -> None:
    """All weights, curves and answers are equal: difference exactly 0."""
    tuned = train(data, tmp_path / "tuned", encoder=CLIP)
    assert differing(reference, tuned) == set()
    assert (reference / "history.json").read_bytes() == (tuned / "history.json").read_bytes()
    assert answers(reference) == answers(tuned)


def test_what_layer_minus_2_does_not_read_changes_nothing(data: Path, reference: Path, tmp_path: Path) -> None:
    """The last block, the last norm and the projection are other ones: nothing that trains and no answer differs."""
    unseen = write_encoder(tmp_path / "unseen", changed="transformer.resblocks.2.|ln_post|proj")
    assert encoder_sha256(unseen) != encoder_sha256(CLIP)
    tuned = train(data, tmp_path / "tuned", encoder=unseen)
    found = differing(reference, tuned)
    assert found and all("vision_tower." in name for name in found)
    assert all("layers.2." in name or "post_layernorm" in name for name in found), found
    assert (reference / "history.json").read_bytes() == (tuned / "history.json").read_bytes()
    assert answers(reference) == answers(tuned)


def test_what_it_does_read_changes_it(data: Path, reference: Path, tmp_path: Path) -> None:
    """One block below, and both parts become others: so the two tests before can fail."""
    seen = write_encoder(tmp_path / "seen", changed="transformer.resblocks.1.")
    found = differing(reference, train(data, tmp_path / "tuned", encoder=seen))
    assert any("lm_head" in name for name in found)
    assert any("projector" in name for name in found)


def test_a_seed_is_another_language_model(data: Path, reference: Path, tmp_path: Path) -> None:
    found = differing(reference, train(data, tmp_path / "other", seed=1))
    assert any("projector" in name for name in found) and any("language_model" in name for name in found)
    assert not any("vision_tower" in name for name in found)


def in_a_process(data: Path, to: Path, at: int, number: int) -> int | None:
    """Train in a process of its own, which gets a signal right after step `at`; its exit status."""
    child = SPAWN.Process(target=_watched, args=(data, to, at, number))
    child.start()
    child.join()
    return child.exitcode


def _watched(data: Path, to: Path, at: int, number: int) -> None:
    os.environ["UN2CLIP_TRACKING"] = "off"

    def watch(step: int, values: object) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    tracking.log_metrics = watch
    try:
        train(data, to)
    except Stopped as stopped:
        raise SystemExit(128 + (stopped.signal or 0)) from None


@pytest.mark.parametrize(("at", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM), (3, signal.SIGKILL)])
def test_killed_and_started_again_it_is_the_same(
    data: Path, reference: Path, tmp_path: Path, at: int, number: int
) -> None:
    """In the first phase, between the two and in the second: the same bytes, and no state is left."""
    status = in_a_process(data, tmp_path / "killed", at, number)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert not (tmp_path / "killed").exists()
    train(data, tmp_path / "killed")
    for name in ("model.safetensors", "history.json", "lineage.json", "tokenizer.json"):
        assert file_sha256(tmp_path / "killed" / name) == file_sha256(reference / name), name
    assert [path.name for path in (tmp_path / "state").iterdir()] == []


def test_two_processes_learn_the_same(data: Path, reference: Path, tmp_path: Path) -> None:
    """Answers of other lengths on each of them: the mean is over all tokens of both."""
    train(data, tmp_path / "two", compute={"processes": 2})
    assert_close(reference, tmp_path / "two")
    losses = [json.loads((folder / "history.json").read_text()) for folder in (reference, tmp_path / "two")]
    assert [row["loss"] for row in losses[1]] == pytest.approx([row["loss"] for row in losses[0]], rel=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"compute": {"max_per_device": 3, "gradient_checkpointing": True}}, {"cache": False, "compute": {"workers": 1}}],
    ids=["in parts, activations twice", "features in the loop, pictures by a worker"],
)
def test_how_it_is_computed_changes_nothing(data: Path, reference: Path, tmp_path: Path, changes: dict) -> None:
    """The weights are those of the reference but for rounding, though the parts have answers of other lengths."""
    assert_close(reference, train(data, tmp_path / "other", **changes))


def test_transformers_loads_it_alone(reference: Path) -> None:
    """The model, its processor, which pads, and what the lineage says."""
    model, loaded = LlavaForConditionalGeneration.from_pretrained(reference, output_loading_info=True)
    assert not loaded["missing_keys"] and not loaded["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(reference)
    inputs = processor(images=decode(noise(0, (40, 20))), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 16
    assert processor.image_processor.do_pad
    lineage = json.loads((reference / "lineage.json").read_text())
    assert lineage["parents"]["encoder"] == encoder_sha256(CLIP) and lineage["steps_done"] == 6
    assert set(lineage["parents"]) == {"encoder", "language", "pictures", "alignment", "instruction"}
    assert (lineage["method"], lineage["seed"]) == ("reference", 0)


def test_it_learns(data: Path, tmp_path: Path) -> None:
    """After 60 steps its answers are righter than after one."""
    phases = {"instruction": {"steps": 60, "warmup_steps": 2, "lr": {"projector": 0.01, "language": 0.01}}}
    history = json.loads((train(data, tmp_path / "long", phases=phases) / "history.json").read_text())
    assert history[-1]["accuracy"] > 0.8 > 0.3 > history[0]["accuracy"] and history[-1]["loss"] < 1.0


def test_a_picture_that_is_broken_is_left_out(data: Path, tmp_path: Path, capfd) -> None:
    """It is named, and counts for nothing; too many of them stop the training."""
    folder = write_instructions(tmp_path / "instructions")
    (folder / "images/red/4.png").write_bytes(b"no picture")
    other = tmp_path / "data"
    other.mkdir()
    (other / "instructions").symlink_to(folder)
    (other / "backbones").symlink_to(data / "backbones")
    train(other, tmp_path / "out", cache=False, corrupt_share=0.1)
    assert "left out: c4: red/4.png cannot be read" in capfd.readouterr().err
    assert json.loads((tmp_path / "out/lineage.json").read_text())["corrupt"] >= 1
    with pytest.raises(UserError, match="red/4.png cannot be read"):
        train(other, tmp_path / "cached")
    (folder / "images/red/8.png").write_bytes(b"neither")
    with pytest.raises(UserError, match="conversations read so far are left out, more than assistant.corrupt_share"):
        train(other, tmp_path / "many", cache=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": -5}, "reads layer -5 of an encoder that has 3"),
        ({"max_tokens": 600}, "max_tokens is 600, and the language model reads 512 at most"),
        ({"max_tokens": 10}, "16 tokens of its picture do not fit into max_tokens"),
        ({"batch_size": {"instruction": 30}}, "there are 24 conversations, fewer than one batch of 30"),
        ({"compute": {"compile": True}}, "compile must be false"),
        ({"language": {"weights": "nowhere/at-all"}}, "needs revision = the 40 digits of a commit"),
    ],
)
def test_numbers_that_do_not_fit(data: Path, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(data, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()

"""Asking a LLaVA: real transformers classes at toy size, against loops that are read aloud."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, SiglipImageProcessor, SiglipVisionConfig

from tests.mllm_sets import noise, png, publish
from tests.toy_llava import SIDE, TOKENS, save_llava
from un2clip.__main__ import main
from un2clip.config import read_params
from un2clip.errors import UserError
from un2clip.evaluation.benchmarks import naturalbench, pope
from un2clip.evaluation.mllm import asking
from un2clip.evaluation.mllm.asking import ask
from un2clip.evaluation.mllm.llava import Llava, load_llava
from un2clip.evidence.languages import AssistantLineage, collect_asked
from un2clip.evidence.scores import ROLES, load_scores
from un2clip.files.outputs import write_json
from un2clip.hashes import folder_sha256
from un2clip.stages import run_stage

CPU = torch.device("cpu")
OPENAI_MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
OPENAI_STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def llava(folder: Path) -> Llava:
    return load_llava(folder, CPU, dtype="float32", max_new_tokens=6)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """POPE's layout: eight photographs of other colours and sizes, wide and high, and texts of other lengths."""
    words = ("dog", "cat", "tree", "bus", "boat", "elephant", "tennis racket", "cup")
    docs = [
        {"question_id": str(i), "image": noise(i, (17 + 4 * i, 30)), "answer": ("yes", "no")[i % 2],
         "question": f"Is there a {word} in the image?", "image_source": f"COCO_{i}", "category": pope.SUBSETS[i % 3]}
        for i, word in enumerate(words)
    ]  # fmt: skip
    return publish("pope", tmp_path_factory.mktemp("data") / "pope", docs)


@pytest.fixture
def numbers() -> dict:
    params = read_params(Path(__file__).parents[2] / "params.yaml")
    params["ask"] |= {"dtype": "float32", "max_new_tokens": 6}
    return params | {"device": "cpu"}


def padded(image: Image.Image) -> np.ndarray:
    """LLaVA's own way, by Pillow alone: a square of the mean colour, bicubic, normalised; (3, H, W)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in OPENAI_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) / 255
    return ((pixels - OPENAI_MEAN) / OPENAI_STD).transpose(2, 0, 1)


def test_the_picture_comes_in_as_llava_has_it(llava: Llava, data: Path) -> None:
    """Padded, by Pillow; the folder's own processor says crop."""
    for question in pope.read(data):
        inputs = llava._inputs([question], [llava._prompt(question)])
        picture = question.picture.load()
        assert picture.width != picture.height
        assert inputs["pixel_values"][0].numpy() == pytest.approx(padded(picture), abs=1e-5)
        assert int((inputs["input_ids"] == 3).sum()) == TOKENS == 9


def naive(llava: Llava, question) -> str:
    """Greedy decoding read aloud: the whole text again for each token, and no cache."""
    inputs = llava._inputs([question], [llava._prompt(question)])
    tokens = inputs["input_ids"]
    for _ in range(6):
        whole = {"input_ids": tokens, "pixel_values": inputs["pixel_values"], "attention_mask": torch.ones_like(tokens)}
        best = llava.model(**whole, use_cache=False).logits[0, -1].argmax()
        tokens = torch.cat([tokens, best[None, None]], dim=1)
        if best == 2:
            break
    return llava.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def test_answers_are_greedy_and_in_fp32_no_matter_how_many_at_once(llava: Llava, data: Path) -> None:
    """One by one, eight at once with other lengths and sizes, and a loop without a cache: the same words."""
    questions = pope.read(data)
    alone = [llava.generate([question])[0] for question in questions]
    assert alone == [naive(llava, question) for question in questions] == llava.generate(questions)
    assert len({*alone}) == 8, "each question has an answer of its own"
    assert llava._prompt(questions[0]) == (
        "USER: <image>\nIs there a dog in the image?\nAnswer the question using a single word or phrase. ASSISTANT:"
    )


def test_the_likeliest_option_is_that_of_a_plain_sum(llava: Llava, tmp_path: Path) -> None:
    """The log-probabilities of " Yes" and " No" behind the prompt, token by token, for a word and for a letter."""
    docs = [
        {
            "index": i,
            "question_type": ("yes_no", "multiple_choice")[i // 4],
            "question": f"Is it {i}?",
            "image": png((9 * i, 0, 0)),
        }
        for i in range(8)
    ]
    questions, chosen = naturalbench.read(publish("naturalbench", tmp_path, docs)), []
    for question in questions:
        inputs = llava._inputs([question], [llava._prompt(question)])
        sums = {}
        for option in question.options:
            said, total = inputs["input_ids"], 0.0
            for token in llava.processor.tokenizer(f" {option}", add_special_tokens=False)["input_ids"]:
                logits = llava.model(input_ids=said, pixel_values=inputs["pixel_values"]).logits[0, -1]
                total += logits.log_softmax(0)[token].item()
                said = torch.cat([said, torch.tensor([[token]])], dim=1)
            sums[option] = total
        chosen.append(max(sums, key=sums.__getitem__))
    assert [llava.likeliest(question) for question in questions] == chosen
    assert len({*chosen[:4]}) + len({*chosen[4:]}) > 2, "not one option for all"


def test_a_question_without_options_has_no_likeliest_one(llava: Llava, data: Path) -> None:
    question = replace(pope.read(data)[0], options={})
    with pytest.raises(UserError, match=r"question COCO_0@random 0 has no options of which one could be the likeliest"):
        llava.likeliest(question)


def test_an_encoder_without_a_class_token(tmp_path: Path, data: Path) -> None:
    """SigLIP: all tokens are taken, none is added, and the picture is padded too."""
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    changed = {"image_processor": images, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}
    save_llava(tmp_path, processor=changed, vision=SiglipVisionConfig, vision_feature_select_strategy="full")
    llava = load_llava(tmp_path, CPU, dtype="float32", max_new_tokens=3)
    question = pope.read(data)[0]
    assert llava._inputs([question], [llava._prompt(question)])["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert isinstance(llava.generate([question])[0], str)


CROPPED = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


LARGE = {"side": 336, "patch": 14}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (LARGE | {"processor": {"num_additional_image_tokens": 0}}, "keeps 575 places .* the encoder gives 576 tokens"),
        (
            LARGE | {"processor": {"vision_feature_select_strategy": "full"}},
            "keeps 577 places .* gives 576 tokens; with",
        ),
        (LARGE | {"vision_feature_select_strategy": "full"}, "keeps 576 places .* the encoder gives 577 tokens"),
        ({"processor": {"chat_template": None}}, "has no chat template"),
        ({"processor": {"image_processor": CLIPImageProcessor(**CROPPED)}}, "makes pictures of 32 pixels, .* takes 24"),
        ({"processor": {"patch_size": None}}, "its processor has no patch_size"),
        ({"vision_feature_layer": -5}, "reads layer -5 of an encoder that has 3"),
        ({"image_token_index": 4}, "the vocabulary has <image> at 3, but the model keeps 4 for pictures"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, changes: dict, message: str) -> None:
    """One token less or more than the encoder gives would be an error deep within, or would go unseen."""
    with pytest.raises(UserError, match=message):
        load_llava(save_llava(tmp_path, **changes), CPU, dtype="float32", max_new_tokens=1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_a_word_of_the_protocol(folder: Path, data: Path, dtype: str) -> None:
    """Weights and pictures in it, also on a processor."""
    llava = load_llava(folder, CPU, dtype=dtype, max_new_tokens=3)
    assert f", {dtype}, " in llava.protocol and llava.model.dtype == getattr(torch, dtype)
    assert len(llava.generate(pope.read(data)[:2])) == 2
    assert llava.likeliest(pope.read(data)[0]) in ("Yes", "No")


def test_a_template_that_does_not_place_the_picture(tmp_path: Path, data: Path) -> None:
    save_llava(tmp_path, processor={"chat_template": "{{ messages[0]['content'][1]['text'] }}"})
    with pytest.raises(UserError, match="does not place the picture and the text of question COCO_0@random 0"):
        load_llava(tmp_path, CPU, dtype="float32", max_new_tokens=1).generate(pope.read(data)[:1])


def test_weights_that_are_not_whole(folder: Path, tmp_path: Path) -> None:
    """Transformers would draw what is missing at random and go on; another kind of model is named."""
    shutil.copytree(folder, tmp_path / "a")
    weights = load_file(tmp_path / "a/model.safetensors")
    weights.pop(next(name for name in weights if "projector" in name))
    save_file(weights, tmp_path / "a/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 missing keys, such as .*projector.*; its weights are not whole"):
        load_llava(tmp_path / "a", CPU, dtype="float32", max_new_tokens=1)
    (tmp_path / "a/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="is a model of the kind 'llama'; only llava"):
        load_llava(tmp_path / "a", CPU, dtype="float32", max_new_tokens=1)
    with pytest.raises(UserError, match="is no folder of a transformers model: FileNotFoundError"):
        load_llava(tmp_path / "none", CPU, dtype="float32", max_new_tokens=1)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]


def run(numbers: dict, folder: Path, data: Path, to: Path, role="reference", benchmark="pope") -> None:
    ask(numbers, assistant=folder, benchmark=benchmark, data=data, to=to, role=role, method=role)


def test_the_command_writes_scores_columns_and_answers(
    folder: Path, data: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """`un2clip ask` from a folder with params.yaml; the answers are the model's, and each says what became of it."""
    root = Path(__file__).parents[2]
    for name in ("params.yaml", "world.yaml", "download.yaml"):
        shutil.copy(root / name, tmp_path)
    (tmp_path / "laptop.yaml").write_text(
        yaml.safe_dump({"device": "cpu", "ask": {"dtype": "float32", "max_new_tokens": 6}})
    )
    monkeypatch.chdir(tmp_path)
    words = [f"--assistant={folder}", "--benchmark=pope", f"--data={data}", "--overlay=laptop.yaml"]
    assert main(["ask", *words]) == 0
    scores = load_scores(tmp_path / "scores/pope/reference.json")
    assert (scores.benchmark, scores.role, scores.method, scores.unit, scores.n) == (
        "pope",
        "reference",
        "reference",
        "%",
        8,
    )
    assert scores.protocol.startswith(pope.PROTOCOL) and scores.protocol.endswith(
        "; greedy, 6 tokens at most, float32, picture padded to a square and resized by PIL, 1 at once"
    )
    head, *answers = lines(tmp_path / "scores/pope/reference.answers.jsonl")
    assert head["benchmark"] == "pope" and head["data"] == scores.data_sha256
    llava = load_llava(folder, CPU, dtype="float32", max_new_tokens=6)
    for question, line, item in zip(pope.read(data), answers, scores.items, strict=True):
        assert line["answer"] == llava.generate([question])[0] and line["understood"] == pope.understand(line["answer"])
        assert line["right"] == (item.value == 1.0) and (line["id"], line["text"]) == (question.id, question.text)
    columns = json.loads((tmp_path / "scores/pope/reference.columns.json").read_text())
    assert columns == dict(pope.score(pope.read(data), [line["answer"] for line in answers]).columns)
    printed = capsys.readouterr().out
    assert f"pope: reference {scores.score:.1f} % of 8 questions" in printed and "POPE random F1" in printed


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    folder: Path, data: Path, tmp_path: Path, numbers: dict, monkeypatch
) -> None:
    """Broken off after five answers, in the middle of a line: only what is missing is asked."""
    numbers["ask"]["batch_size"] = 2
    run(numbers, folder, data, tmp_path / "whole")
    asked, generate = [], Llava.generate

    def stopping(self, questions):
        asked.extend(question.id for question in questions)
        if len(asked) > 4 and not (tmp_path / "go").exists():
            raise KeyboardInterrupt
        return generate(self, questions)

    monkeypatch.setattr(Llava, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(numbers, folder, data, tmp_path / "stopped")
    journal = tmp_path / "stopped/reference.answers.jsonl"
    assert len(lines(journal)) == 1 + 4
    with journal.open("a") as file:
        file.write('{"id": "half a li')
    (tmp_path / "go").touch()
    asked.clear()
    run(numbers, folder, data, tmp_path / "stopped")
    assert asked == [question.id for question in pope.read(data)][4:]
    names = ("reference.json", "reference.answers.jsonl", "reference.columns.json")
    assert [(tmp_path / "stopped" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / name).read_bytes() for name in names
    ]
    asked.clear()
    run(numbers, folder, data, tmp_path / "stopped")
    assert asked == [], "a finished one is scored anew, and asks nothing"


def test_an_answer_may_hold_any_letters(folder: Path, data: Path, tmp_path: Path, numbers: dict, monkeypatch) -> None:
    """Line separators that are not a line's end to JSON, quotes, and what is no ASCII."""
    said = 'Yes\u2028no\x85 "ß"\n\x0b'
    monkeypatch.setattr(Llava, "generate", lambda self, questions: [said] * len(questions))
    for _ in range(2):  # written, and read again
        run(numbers, folder, data, tmp_path)
        assert [line["answer"] for line in lines(tmp_path / "reference.answers.jsonl")[1:]] == [said] * 8


def test_answers_of_another_run_are_not_taken(folder: Path, data: Path, tmp_path: Path, numbers: dict) -> None:
    """Another model, another length of answers: nothing is mixed, and what is there stays."""
    run(numbers, folder, data, tmp_path / "to")
    before = (tmp_path / "to/reference.answers.jsonl").read_bytes()
    other = save_llava(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"has answers of another run \(its assistant differ\); move it away"):
        run(numbers, other, data, tmp_path / "to")
    numbers["ask"]["max_new_tokens"] = 3
    with pytest.raises(UserError, match=r"has answers of another run \(its asked differ\)"):
        run(numbers, folder, data, tmp_path / "to")
    assert (tmp_path / "to/reference.answers.jsonl").read_bytes() == before
    (tmp_path / "to/reference.answers.jsonl").write_text("{}\nYes\n")
    with pytest.raises(UserError, match="is no record of answers; move it away"):
        run(numbers, folder, data, tmp_path / "to")


def test_two_roles_are_compared(folder: Path, data: Path, tmp_path: Path, numbers: dict, capsys) -> None:
    """The same model has a difference of exactly 0; another has a paired interval; another protocol is not compared."""
    run(numbers, folder, data, tmp_path)
    assert "interval" not in capsys.readouterr().out
    run(numbers, folder, data, tmp_path, role="tuned")
    first, second = (load_scores(tmp_path / f"{role}.json") for role in ("reference", "tuned"))
    assert first.items == second.items and "95 % interval" in capsys.readouterr().out
    (tmp_path / "tuned.answers.jsonl").unlink()
    numbers["ask"]["batch_size"] = 4
    run(numbers, folder, data, tmp_path, role="tuned")
    assert "are not compared: they were measured in different ways" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cv_bench", "naturalbench", "scienceqa", "hallusion", "gqa", "mmbench"])
def test_every_other_set_can_be_asked(
    llava: Llava, tmp_path: Path, numbers: dict, name: str, monkeypatch, folder: Path
) -> None:
    """From its layout to its scores; NaturalBench by likelihood, MMBench in all rotations."""
    monkeypatch.setattr(asking, "load_llava", lambda *args, **more: llava)
    numbers["ask"]["naturalbench"] = {"choose": "likelihood"}
    docs = [{"index": i} for i in range(4)] if name == "naturalbench" else [{}]
    publish(name, tmp_path / "data", docs)
    run(numbers, folder, tmp_path / "data", tmp_path / "to", benchmark=name)
    scores = load_scores(tmp_path / "to/reference.json")
    assert scores.n == {"naturalbench": 4, "mmbench": 2}.get(name, 1)
    assert {"naturalbench": "; likelihood; ", "mmbench": "; circular; "}.get(name, "; ") in scores.protocol


def test_no_answer_names_an_option(
    llava: Llava, tmp_path: Path, numbers: dict, folder: Path, monkeypatch, capsys
) -> None:
    """A score of 0 because nothing was understood is told apart from wrong answers."""
    monkeypatch.setattr(asking, "load_llava", lambda *args, **more: llava)
    publish("scienceqa", tmp_path / "data", [{}, {}])
    run(numbers, folder, tmp_path / "data", tmp_path / "to", benchmark="scienceqa")
    assert "2 of 2 answers name none of the options, and count as wrong" in capsys.readouterr().out


def test_a_benchmark_of_a_clip_is_refused_before_anything_is_loaded(tmp_path: Path, numbers: dict) -> None:
    with pytest.raises(UserError, match="benchmark mmvp_vlm measures a model of the kind clip, not mllm"):
        run(numbers, tmp_path / "none", tmp_path / "none", tmp_path, benchmark="mmvp_vlm")
    with pytest.raises(UserError, match="no benchmark data at"):
        run(numbers, tmp_path / "none", tmp_path / "none", tmp_path)


def test_the_stage_is_a_command_line_of_its_own(folder: Path, data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """`un2clip ask` with --questions is the stage, as a graph calls it; a seed that is none is one sentence."""
    monkeypatch.chdir(Path(__file__).parents[2])
    (tmp_path / "laptop.yaml").write_text(yaml.safe_dump({"ask": {"dtype": "float32", "max_new_tokens": 2}}))
    words = ["--questions=pope", "--device=cpu", "--checkpoints=", f"--benchmarks={data.parent}"]
    words += [f"--{role}={trained(folder, tmp_path / role, role, 3)}" for role in ROLES] + [
        f"--scores={tmp_path / 'to'}"
    ]
    assert main(["ask", f"--overlay={tmp_path / 'laptop.yaml'}", *words]) == 0
    assert json.loads((tmp_path / "to/pope/tuned/asked.json").read_text())["language_seed"] == 3
    assert main(["ask", *[word for word in words if "--tuned" not in word], f"--tuned={folder}"]) == 2
    assert "has no lineage.json, so `assistant` did not train it; `un2clip ask --assistant=" in capsys.readouterr().err


def trained(folder: Path, to: Path, role: str = "tuned", seed: int = 7) -> Path:
    """The toy with a lineage, as the stage `assistant` leaves it."""
    shutil.copytree(folder, to)
    lineage = AssistantLineage(method="un2clip" if role == "tuned" else "reference", seed=seed, params={}, steps_done=1,
                               corrupt=0, parents={"encoder": role}, assistant_sha256="a")  # fmt: skip
    write_json(to / "lineage.json", asdict(lineage))
    return to


@pytest.fixture(scope="module")
def pair(folder: Path, tmp_path_factory) -> dict[str, Path]:
    """Both assistants of seed 7."""
    return {role: trained(folder, tmp_path_factory.mktemp("pair") / role, role) for role in ROLES}


def asked(numbers: dict, to: Path, pair: dict[str, Path], benchmarks: Path, **names) -> None:
    usual = {"questions": ["pope"], "device": "cpu", "checkpoints": "", "benchmarks": benchmarks, "scores": to}
    run_stage("ask", numbers["ask"], **(usual | pair | names))


def test_the_stage_writes_what_the_command_does(pair: dict, data: Path, tmp_path: Path, numbers: dict) -> None:
    """Items, answers and columns of both; beside them the seed of the language model and the encoder's hash."""
    asked(numbers, tmp_path / "stage", pair, data.parent)
    for role, method in (("reference", "reference"), ("tuned", "un2clip")):
        run(numbers, pair[role], data, tmp_path / "command", role=role)
        ours = tmp_path / "stage/pope" / role
        made = load_scores(ours / "asked.json")
        assert made == replace(load_scores(tmp_path / f"command/{role}.json"), method=method)
        content = json.loads((ours / "asked.json").read_text())
        assert (content["language_seed"], content["read_sha256"]) == (7, role)
        for name in ("answers.jsonl", "columns.json"):
            assert (ours / name).read_bytes() == (tmp_path / f"command/{role}.{name}").read_bytes()
    assert collect_asked([tmp_path / "stage"])["pope"].keys() == {7}


def test_two_language_models_are_not_compared(
    folder: Path, pair: dict, data: Path, tmp_path: Path, numbers: dict
) -> None:
    """Their own difference would be taken for the encoders'."""
    other = pair | {"tuned": trained(folder, tmp_path / "other", "tuned", 8)}
    with pytest.raises(
        UserError, match=r"other seeds, 7 \(reference\) and 8 \(tuned\), and would differ by themselves"
    ):
        asked(numbers, tmp_path / "to", other, data.parent)


def test_the_stage_goes_on_where_it_stopped(pair: dict, data: Path, tmp_path: Path, numbers: dict, monkeypatch) -> None:
    """Although a graph deletes the outputs of what it runs anew: unfinished answers lie outside of it."""
    asked(numbers, tmp_path / "whole", pair, data.parent)
    seen, generate, kept = [], Llava.generate, {"checkpoints": str(tmp_path / "checkpoints")}

    def stopping(self, questions):
        seen.extend(question.id for question in questions)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return generate(self, questions)

    monkeypatch.setattr(Llava, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        asked(numbers, tmp_path / "stopped", pair, data.parent, **kept)
    assert not any((tmp_path / "stopped/pope/reference").iterdir())
    asked(numbers, tmp_path / "stopped", pair, data.parent, **kept)
    assert len(seen) == 2 * 8 + 1, "the fourth is asked twice"
    assert folder_sha256(tmp_path / "stopped") == folder_sha256(tmp_path / "whole")
    assert not any((tmp_path / "checkpoints/ask").iterdir())


def test_the_stage_refuses_what_it_cannot_ask(pair: dict, data: Path, tmp_path: Path, numbers: dict) -> None:
    """Before anything is loaded: data that are not there, an assistant that is not there."""
    with pytest.raises(UserError, match="no benchmark data at .*mme; `un2clip fetch mme` gets it.*questions.of_each"):
        asked(numbers, tmp_path / "to", pair, data.parent, questions=["pope", "mme"])
    with pytest.raises(UserError, match="none/lineage.json.*run `un2clip assistant` to make it"):
        asked(numbers, tmp_path / "to", pair | {"tuned": tmp_path / "none"}, data.parent)

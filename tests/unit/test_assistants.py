"""The parts of an assistant: conversations, prompts and their labels, order, and the LLaVA that is put together."""

import json
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from tests import toy_llava
from tests.conversing import CLIP, gpt, human, write_instructions
from un2clip.assistants.building import build_assistant, llava_config, save_assistant
from un2clip.assistants.conversations import IMAGE, Conversation, read_conversations, texts_of
from un2clip.assistants.language import Language, ToySize, add_tokens, open_language, toy_tokenizer
from un2clip.assistants.next_token import NextToken
from un2clip.assistants.prompts import IGNORED, PLAIN, chat_template, encode
from un2clip.assistants.reading import grouped
from un2clip.errors import UserError
from un2clip.evaluation.mllm.llava import load_llava
from un2clip.hashes import tensors_sha256
from un2clip.models.clip import Clip, load_clip

SIZE = ToySize(
    vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    max_position_embeddings=256,
)  # fmt: skip
TOY = Language(weights="toy", revision="", sha256={})
THREE = Conversation(id="three", image="a.png", turns=(("What is it?", "a red dog"), ("Big?", "No"), ("Why?", "So so")))
SYSTEM = "A chat between a curious human and an assistant."


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip(CLIP)


def bytes_tokenizer():
    """A token a byte, which has begin and end, and no image token yet beside the four of tests/toy_llava.py."""
    return toy_llava.tokenizer()


def test_a_prompt_is_llavas_and_its_labels_are_the_answers() -> None:
    """Three turns, written by hand from LLaVA's conversation.py (vicuna_v1): each letter a token."""
    words = bytes_tokenizer()
    encoded = encode(THREE, words, chat_template(SYSTEM, "</s>"), image_tokens=2, max_tokens=500)
    asked = [f"{SYSTEM} USER: ", "<image><image>", "\nWhat is it? ASSISTANT: "]
    by_hand = [(text, False) for text in asked] + [("a red dog</s>", True), ("USER: Big? ASSISTANT: ", False)]
    by_hand += [("No</s>", True), ("USER: Why? ASSISTANT: ", False), ("So so</s>", True)]
    ids = [(token, counts) for text, counts in by_hand for token in words(text)["input_ids"]]
    assert encoded.ids == [token for token, _ in ids]
    assert encoded.labels == [token if counts else IGNORED for token, counts in ids]


def test_asking_begins_as_training_did() -> None:
    """The prompt without its answer is the beginning of what was trained on, token by token."""
    words = bytes_tokenizer()
    template = chat_template("", "</s>")
    one = Conversation(id="1", image="a.png", turns=(("What is it?", "a dog"),))
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = words.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True, tokenize=False
    )
    assert prompt == "USER: <image>\nWhat is it? ASSISTANT:"
    encoded = encode(one, words, template, image_tokens=1, max_tokens=99)
    begun = words(prompt)["input_ids"]
    assert encoded.ids[: len(begun)] == begun and set(encoded.labels[: len(begun)]) == {IGNORED}


def test_a_caption_stands_behind_its_picture_alone() -> None:
    """LLaVA's "plain": the question is left out, the line's end is learned."""
    words = bytes_tokenizer()
    caption = Conversation(id="c", image="a.png", turns=(("Describe it.", "a dog"),))
    encoded = encode(caption, words, PLAIN, image_tokens=3, max_tokens=99)
    answer = words("a dog\n")["input_ids"]
    assert encoded.ids == [3, 3, 3, *answer] and encoded.labels == [IGNORED] * 3 + answer


def test_what_is_too_long_is_cut_but_for_the_picture() -> None:
    words, template = bytes_tokenizer(), chat_template("", "</s>")
    whole, cut = (encode(THREE, words, template, 4, limit) for limit in (500, 50))
    assert cut.ids == whole.ids[:50] and cut.labels == whole.labels[:50]
    with pytest.raises(UserError, match=r"conversation three: the 60 tokens of its picture do not fit into max_tokens"):
        encode(THREE, words, template, 60, 50)


def write(folder: Path, records: object) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images/a.png").write_bytes(b"")
    (folder / "talks.json").write_text(json.dumps(records))
    return folder / "talks.json"


def test_conversations_are_read_as_llava_reads_them(tmp_path: Path) -> None:
    """The picture's token stands anywhere in the first question; a first answer and a last question are passed over."""
    said = [gpt("early"), human("What? <image>"), gpt("this"), human("Why?"), gpt("so"), human("And?")]
    file = write(tmp_path, [{"id": 7, "image": "a.png", "conversations": said}, {"conversations": said[3:5]}])
    first, second = read_conversations(file, tmp_path / "images")
    assert first == Conversation(id="7", image="a.png", turns=(("What?", "this"), ("Why?", "so")))
    assert second == Conversation(id="None", image="", turns=(("Why?", "so"),)) and second.words == 2


PAIR = [human("<image>\nWhat?"), gpt("this")]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "must be a list of conversations"),
        ({"a": 1}, "must be a list of conversations"),
        ([3], r"conversation 0 must be \{"),
        ([{"conversations": [human("a")]}], "has no question with an answer"),
        ([{"conversations": [human("a"), {"from": "gpt"}]}], "a turn must be"),
        ([{"conversations": [human("a"), {"from": "system", "value": ""}]}], "a turn must be"),
        ([{"conversations": [human("a"), human("b")]}], "turn 1 is from human"),
        ([{"image": "a.png", "conversations": [human("a"), gpt("b")]}], "has a picture and no <image>"),
        ([{"image": "a.png", "conversations": [*PAIR, human("<image>"), gpt("b")]}], "another place or number of"),
        ([{"image": "a.png", "conversations": [human("a"), gpt("<image>")]}], "another place or number of"),
        ([{"conversations": PAIR}], "has <image> and no picture"),
        ([{"image": "b.png", "conversations": PAIR}], r"the picture \S*images/b.png is not there"),
        ([{"image": "../a.png", "conversations": PAIR}], "image must be a path within the folder"),
        ([{"image": "/a.png", "conversations": PAIR}], "image must be a path within the folder"),
        ([{"image": 3, "conversations": PAIR}], "image must be a path within the folder"),
    ],
)  # fmt: skip
def test_conversations_that_are_broken(tmp_path: Path, records: object, message: str) -> None:
    """One sentence that names the file and the conversation."""
    file = write(tmp_path, records)
    with pytest.raises(UserError, match=message) as caught:
        read_conversations(file, tmp_path / "images")
    assert str(file) in str(caught.value)


def test_captions_are_one_answer_to_a_picture(tmp_path: Path) -> None:
    for said in ([*PAIR, human("b"), gpt("c")], [human("a"), gpt("b")]):
        image = {"image": "a.png"} if said[0] == PAIR[0] else {}
        with pytest.raises(UserError, match="there must be a picture and one answer, its caption"):
            read_conversations(write(tmp_path, [image | {"conversations": said}]), tmp_path / "images", captions=True)


def talks(shown: int, text: int) -> list[Conversation]:
    return [
        Conversation(id=str(i), image="a.png" if i < shown else "", turns=(("a " * (i % 7), "b"),))
        for i in range(shown + text)
    ]


@pytest.mark.parametrize(("shown", "text"), [(21, 10), (16, 0), (3, 5)])
def test_batches_are_of_one_kind_and_everything_comes_once(shown: int, text: int) -> None:
    """But for one batch of what is left; the longest first; an epoch has every conversation at most once."""
    given = talks(shown, text)
    an_epoch = len(given) // 4
    first, again, other = (list(islice(grouped(given, 4, seed), an_epoch)) for seed in (0, 0, 1))
    assert first == again != other
    assert len({i for batch in first for i in batch}) == 4 * an_epoch
    mixed = [batch for batch in first if len({bool(given[i].image) for i in batch}) == 2]
    assert len(mixed) <= 1
    for batch in first:
        words = [given[i].words for i in batch]
        assert words == sorted(words, reverse=True)


def test_the_order_goes_on_at_any_step() -> None:
    given = talks(13, 9)
    whole = list(islice(grouped(given, 4, 3), 17))
    for start in (1, 5, 11):
        assert list(islice(grouped(given, 4, 3, start), 17 - start)) == whole[start:]


def test_a_toys_words_are_those_of_the_conversations() -> None:
    """The same in any order of the texts; what it never met it spells."""
    texts = list(texts_of([THREE])) * 3
    one, two = toy_tokenizer(texts, 300), toy_tokenizer(texts[::-1], 300)
    assert one.get_vocab() == two.get_vocab()
    assert one.decode(one("Über <3")["input_ids"][1:]) == "Über <3"
    assert one("x")["input_ids"][0] == one.bos_token_id and one.convert_tokens_to_ids(IMAGE) == 3


def test_a_toy_reads_an_option_as_one_word_and_never_an_answer_with_its_question() -> None:
    """Of what is always said alike; and a prompt's tokens are those that were read of it in training."""
    asked = "USER: Which?\n(A) red\n(B) dark red Option: A: red; B: dark; Please say so.\nAnswer by letter."
    words = toy_tokenizer([f"{asked} ASSISTANT: A"] * 9, 600)
    tokens = [words.decode(token) for token in words(f"{asked} ASSISTANT: A")["input_ids"][1:]]
    assert tokens == [
        "USER:", " Which", "?", "\n(A) red", "\n(B) dark", " red", " Option", ":", " A: red;", " B: dark;",
        " Please say so.", "\nAnswer by letter.", " ASSISTANT:", " A",
    ]  # fmt: skip
    assert words(f"{asked} ASSISTANT:")["input_ids"] == words(f"{asked} ASSISTANT: A")["input_ids"][:-1]


def test_features_are_what_transformers_reads(clip: Clip, tmp_path: Path) -> None:
    """The difference is exactly 0; the folder passes every check of `ask`; the language model is the one it was."""
    language, words = open_language(TOY, SIZE, texts_of([THREE]), seed=0)
    before = tensors_sha256(language.state_dict())
    built = build_assistant(clip, language, words, layer=-2, system="", seed=0)
    assert tensors_sha256(language.state_dict()) == before
    pixel_values = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    objective = NextToken(built.model)
    with torch.no_grad():
        ours = built.model.model.multi_modal_projector(objective.features(pixel_values))
        theirs = torch.stack(list(built.model.get_image_features(pixel_values=pixel_values).pooler_output))
    assert torch.equal(ours, theirs) and ours.shape == (3, 16, 16)
    save_assistant(built, tmp_path, torch.float32)
    loaded = load_llava(tmp_path, torch.device("cpu"), dtype="float32", max_new_tokens=2)
    assert tensors_sha256(loaded.model.state_dict()) == tensors_sha256(built.model.state_dict())


def test_the_loss_is_transformers_own(clip: Clip) -> None:
    """Weighted by answer tokens it is what LlavaForConditionalGeneration says of the same labels."""
    language, words = open_language(TOY, SIZE, texts_of([THREE]), seed=0)
    built = build_assistant(clip, language, words, layer=-2, system="", seed=0)
    encoded = encode(THREE, words, built.processor.chat_template, built.image_tokens, 256)
    ids, labels = torch.tensor([encoded.ids] * 2), torch.tensor([encoded.labels] * 2)
    labels[1, -9:] = IGNORED
    pixel_values = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), "pixel_values": pixel_values}
    batch |= {"shown": torch.tensor([True, True]), "valid": torch.tensor([True, True])}
    objective = NextToken(built.model)
    with torch.no_grad():
        weights, losses = objective.weights(batch), objective(batch, {})["loss"]
        wanted = built.model(input_ids=ids, pixel_values=pixel_values, labels=labels).loss
    assert weights[0] > weights[1] > 0
    assert float((weights * losses).sum() / weights.sum()) == pytest.approx(float(wanted), rel=1e-6)


def new_llama(rows: int, **changes: bool) -> LlamaConfig:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=rows, **shape, **changes)


def test_a_model_without_an_image_token_gets_one(clip: Clip, tmp_path: Path) -> None:
    """A folder with tied embeddings; what it said before of a text it says still."""
    words = bytes_tokenizer()
    words.pad_token = None
    torch.manual_seed(0)
    model = LlamaForCausalLM(new_llama(len(words), tie_word_embeddings=True)).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    opened, known = open_language(Language(weights=str(tmp_path), revision="", sha256={}), SIZE, [], seed=0)
    built = build_assistant(clip, opened, known, layer=-2, system="", seed=0)
    assert built.model.lm_head.weight is built.model.model.language_model.get_input_embeddings().weight
    with torch.no_grad():
        after = built.model(input_ids=ids).logits
    assert torch.allclose(after[..., : before.shape[-1]], before, atol=1e-6)
    save_assistant(built, tmp_path / "out", torch.float32)
    load_llava(tmp_path / "out", torch.device("cpu"), dtype="float32", max_new_tokens=2)


def test_a_gguf_file_says_what_reads_it(tmp_path: Path, monkeypatch) -> None:
    """The package gguf, which need not be there; any other file is refused, and a wrong hash first of all."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"a\.gguf is read by the package gguf; `pip install gguf` gets it"):
        open_language(Language(weights=str(file), revision="", sha256={}), SIZE, [], seed=0)
    with pytest.raises(UserError, match="is not what was pinned"):
        open_language(Language(weights=str(file), revision="", sha256={"a.gguf": "0" * 64}), SIZE, [], seed=0)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"is a file; name the folder that transformers saves, or a \.gguf"):
        open_language(Language(weights=str(tmp_path / "a.safetensors"), revision="", sha256={}), SIZE, [], seed=0)


def test_models_and_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    words = bytes_tokenizer()
    small = LlamaForCausalLM(new_llama(99))
    with pytest.raises(UserError, match=r"has 99 tokens, but its tokenizer 260; they do not fit"):
        add_tokens(small, words)
    words.eos_token, small = None, LlamaForCausalLM(new_llama(260))
    with pytest.raises(UserError, match="lacks an end-of-text token"):
        add_tokens(small, words)
    with pytest.raises(UserError, match="of the kind gpt2 fits into no LLaVA of transformers"):
        add_tokens(GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1)), bytes_tokenizer())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no language model of transformers"):
        open_language(Language(weights=str(tmp_path), revision="", sha256={}), SIZE, [], seed=0)
    with pytest.raises(UserError, match="there is no file or folder 'nowhere'"):
        open_language(Language(weights="nowhere", revision="", sha256={}), SIZE, [], seed=0)


def test_a_configuration_without_the_image_token(clip: Clip) -> None:
    words = bytes_tokenizer()
    text = LlamaConfig(vocab_size=3)
    vision = SiglipVisionConfig()
    with pytest.raises(UserError, match=r"vocabulary lacks the image token <image>"):
        llava_config(vision, text, words, layer=-2)


@pytest.mark.parametrize(("width", "inner", "layers"), [(4096, 11008, 32), (5120, 13824, 40)], ids=["7b", "13b"])
def test_full_size(width: int, inner: int, layers: int) -> None:
    """LLaVA-1.5 on the meta device: 576 places of a picture, and as many parameters as Llama's shape says by hand."""
    text = LlamaConfig(
        vocab_size=32064, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=width // 128,
    )  # fmt: skip
    by_hand = {
        "language": 2 * 32064 * width + layers * (4 * width**2 + 3 * width * inner + 2 * width) + width,
        "projector": (1024 + 1) * width + (width + 1) * width,
    }
    words = bytes_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = llava_config(vision, text, words, layer=-2)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
        objective = NextToken(model)
    assert config.image_seq_length == 576
    trained = {name: sum(p.numel() for p in part.parameters()) for name, part in objective.parts().items()}
    assert trained == by_hand
    if layers == 32:  # llava-hf/llava-1.5-7b-hf
        assert sum(value.numel() for value in model.parameters()) == 7_063_427_072


def test_the_worlds_words_are_read(tmp_path: Path) -> None:
    """What the helper of these tests writes is read back whole."""
    folder = write_instructions(tmp_path)
    found = [
        read_conversations(folder / name, folder / "images", captions=name == "alignment.json")
        for name in ("alignment.json", "instruction.json")
    ]
    assert [len(each) for each in found] == [24, 24] and sum(not talk.image for talk in found[1]) == 5

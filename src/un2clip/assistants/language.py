"""The language model of an assistant: a toy that begins from scratch, or what a folder or a hub id holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from un2clip.assistants.conversations import IMAGE
from un2clip.config import at_least
from un2clip.errors import UserError, reason
from un2clip.sources.hub import Source, obtain

TOY = "toy"
GGUF = ".gguf"
PAD = "<pad>"
BEGIN, END = "<s>", "</s>"  # of the toy's texts, as Llama's
#: What may become one token of the toy: a word or a mark; and, since it has few steps to learn in, who speaks, an
#: option with its letter, and a sentence that says how to answer.
WORDS = (
    r"\n\(?[A-Z][.)] \w+| [A-Z]: \w+;|\nAnswer [^.]+\.| (?:Please|Select) [^.]+\."
    r"|\s?[A-Z]+:|\s?\w+|\s?[^\w\s]|\s"
)
#: A vocabulary is a multiple of it, as in llava-hf's copies of LLaVA-1.5 (32,064).
MULTIPLE = 64


@dataclass(frozen=True, kw_only=True)
class ToySize:
    """Shape of the toy, names as in transformers' LlamaConfig.

    Attributes:
        vocab_size: tokens that are learned from the conversations, at most.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int

    def __post_init__(self) -> None:
        names = "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"
        at_least(self, 1, *names)
        at_least(self, len(_alphabet()) + 4, "vocab_size")
        if self.hidden_size < 1 or self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size must be a multiple of twice num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )


@dataclass(frozen=True, kw_only=True)
class Language:
    """`assistant.language` of params.yaml.

    Attributes:
        weights: toy | a local folder | a local GGUF file | a hub id; of any model that AutoModelForCausalLM and
            AutoTokenizer load. Of GGUF the quantised weights are made whole again.
        revision, sha256: of a hub id, as of every other source.
    """

    weights: str
    revision: str
    sha256: dict[str, str]

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights must be toy, a folder, a GGUF file or a hub id, got ''")
        _ = self.source

    @property
    def source(self) -> Source:
        return Source(location=self.weights, revision=self.revision, sha256=self.sha256)


def open_language(language: Language, toy: ToySize, texts: Iterable[str], seed: int) -> tuple[Any, Any]:
    """The language model, in float32 on the CPU, and its tokenizer, which knows an image token and a padding.

    Args:
        texts: from which a toy's tokenizer learns its words.
        seed: of what begins from scratch: a toy's weights, and the embeddings of new tokens.

    Returns:
        A model of a class of AutoModelForCausalLM, a fast tokenizer.

    Raises:
        UserError: it cannot be had, is no language model, or model and tokenizer do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if language.weights == TOY:
            tokenizer = toy_tokenizer(texts, toy.vocab_size)
            return new_toy(toy, tokenizer), tokenizer
        model, tokenizer = _load(language)
        add_tokens(model, tokenizer)
        return model, tokenizer


def toy_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words are those of the texts; the same texts give the same vocabulary, in any order."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BEGIN, END, IMAGE],
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BEGIN, eos_token=END, pad_token=PAD, additional_special_tokens=[IMAGE]
    )


def new_toy(size: ToySize, tokenizer: Any) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    rows = -(-len(tokenizer) // MULTIPLE) * MULTIPLE
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            max_position_embeddings=size.max_position_embeddings,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            # a row of a matrix has length 1, as 0.02 gives it in Llama's own of 4,096 nearly; with 0.02 a narrow toy
            # hardly attends to anything for its first hundreds of steps (docs/LOG.md)
            initializer_range=size.hidden_size**-0.5,
        )
    )


def add_tokens(model: Any, tokenizer: Any) -> None:
    """Give model and tokenizer an image token, and a padding where there is none.

    Raises:
        UserError: the model is unlike a Llama; or its tokenizer has more tokens, lacks an end, or does not say
            where in a text its tokens stand.
    """
    if not hasattr(model.base_model, "embed_tokens"):
        kind = model.config.model_type
        raise UserError(f"a language model of the kind {kind} fits into no LLaVA of transformers; take one like Llama")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise UserError(f"the language model has {rows} tokens, but its tokenizer {len(tokenizer)}; they do not fit")
    if not tokenizer.is_fast or tokenizer.eos_token is None:
        lacks = "an end-of-text token" if tokenizer.is_fast else "a tokenizer.json, by which answers are found in texts"
        raise UserError(f"the language model's tokenizer lacks {lacks}")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=MULTIPLE)
    model.config.pad_token_id = tokenizer.pad_token_id


def _load(language: Language) -> tuple[Any, Any]:
    place = obtain(language.source, files=("config.json", "tokenizer*"), name="assistant.language")
    given: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    folder = place
    if place.suffix == GGUF:
        if find_spec("gguf") is None:
            raise UserError(f"assistant.language: {place} is read by the package gguf; `pip install gguf` gets it")
        folder, given["gguf_file"] = place.parent, place.name
    elif not place.is_dir():
        raise UserError(f"assistant.language: {place} is a file; name the folder that transformers saves, or a {GGUF}")
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **given
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **given)
    except Exception as error:  # transformers raises whatever its parts do
        raise UserError(f"assistant.language: {place} is no language model of transformers: {reason(error)}") from None
    if lost := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise UserError(f"assistant.language: {place} lacks weights, such as {lost[0]}; fetch it again")
    return model, tokenizer


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())

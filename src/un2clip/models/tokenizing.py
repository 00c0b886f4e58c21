"""open_clip's tokenizers in Hugging Face's classes, with what open_clip does to a text before it is split.

open_clip cleans texts by ftfy and html.unescape: `it&rsquo;s`, curly quotes and full-width letters become plain. The
steps here say the same in the tokenizers library, out of ftfy's own tables. What they do not do is guess encodings
(ftfy's mojibake, `sÃ£o`), read entities that HTML 4 does not have, leave entities of curly quotes curly where a text
has a `<`, or split the words `<|endoftext|>` and `<|startoftext|>`, which are tokens to Hugging Face. Such texts get
other ids there.
"""

import copy
import functools
import gzip
from collections.abc import Iterator
from html.entities import html5, name2codepoint
from pathlib import Path

import open_clip
from ftfy.chardata import DOUBLE_QUOTE_RE, LIGATURES, SINGLE_QUOTE_RE, WIDTH_MAP
from open_clip.tokenizer import HFTokenizer, default_bpe
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from un2clip.errors import UserError
from un2clip.files.texts import read_json
from un2clip.models.clip import Clip

#: References by number that the web is full of: quotes, ampersand, brackets, dashes, dots, the hard space.
_NUMBERED = (34, 38, 39, 60, 62, 160, 8211, 8212, 8216, 8217, 8220, 8221, 8226, 8230, 8482)
_CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\x{206a}-\x{206f}\x{feff}\x{fff9}-\x{fffc}]"  # what ftfy takes away
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"  # open_clip's, which is of any case
_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}


def tokenizer_of(clip: Clip) -> PreTrainedTokenizerBase:
    """Hugging Face's tokenizer that gives the ids of the CLIP's own, up to the padding that CLIP never reads.

    Raises:
        UserError: the CLIP's own does to texts what no step here does.
    """
    options = dict(clip.config["model_cfg"]["text_cfg"].get("tokenizer_kwargs") or {})
    if other := [key for key, value in options.items() if key != "clean" and value]:
        raise UserError(f"Hugging Face's tokenizers have no {other[0]}, which this model's tokenizer_kwargs ask for")
    length = clip.model.context_length
    if isinstance(clip.tokenize, HFTokenizer):
        tokenizer = copy.deepcopy(clip.tokenize.tokenizer)
        tokenizer.model_max_length = length
        backend, clean = tokenizer.backend_tokenizer, options.get("clean", "whitespace")
        own = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([*_cleaning(clean), *own])
        return tokenizer
    return cleaning_tokenizer(length, options.get("clean", "lower"))


def special_ids(clip: Clip) -> tuple[int, int]:
    """The tokens that begin and end a text."""
    if isinstance(clip.tokenize, HFTokenizer):
        return clip.tokenize.tokenizer.bos_token_id, clip.tokenize.tokenizer.eos_token_id
    assert isinstance(clip.tokenize, open_clip.SimpleTokenizer)
    return clip.tokenize.sot_token_id, clip.tokenize.eot_token_id


def bpe_tokenizer(context_length: int) -> CLIPTokenizer:
    """CLIP's tokenizer as pipelines of diffusers hold it: Hugging Face's class, which lowers a text and no more."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # as open_clip's SimpleTokenizer reads it
    merges = [tuple(line.split()) for line in lines]
    return CLIPTokenizer(vocab=vocabulary(), merges=merges, model_max_length=context_length)


def cleaning_tokenizer(context_length: int, clean: str = "lower") -> PreTrainedTokenizerFast:
    """The same with open_clip's cleaning, which CLIPTokenizer has no place for."""
    begin, end = _SPECIAL.values()
    tokens = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=_backend(clean), model_max_length=context_length, **tokens)


@functools.cache
def _backend(clean: str) -> Tokenizer:
    backend = Tokenizer.from_str(bpe_tokenizer(0).backend_tokenizer.to_str())
    words = pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.normalizer = normalizers.Sequence(list(_cleaning(clean)))
    return backend


def vocabulary() -> dict[str, int]:
    """Word -> id, as Hugging Face's files of CLIP have them."""
    return {_SPECIAL.get(word, word): i for word, i in open_clip.SimpleTokenizer().encoder.items()}


def check_vocabulary(folder: Path, name: str) -> None:
    """Refuse a folder of Hugging Face's whose tokenizer numbers its words otherwise than open_clip's does.

    Raises:
        UserError: it does, or a file of it cannot be read.
    """
    path = next((path for path in (folder / "tokenizer.json", folder / "vocab.json") if path.is_file()), None)
    if path is None:
        return
    try:
        content = read_json(path)
        found = content["model"]["vocab"] if path.name == "tokenizer.json" else content
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name}: cannot read {path}: {type(error).__name__}: {error}") from None
    if found != vocabulary():
        raise UserError(f"{name}: {path} is another vocabulary than CLIP's, which is the one that open_clip has")


def _cleaning(clean: str) -> Iterator[normalizers.Normalizer]:
    """What open_clip does to a text before it tokenizes it, step by step.

    Args:
        clean: lower, whitespace or canonicalize, as open_clip calls them.
    """
    yield from _fixes()
    if clean == "canonicalize":
        yield normalizers.Replace("_", " ")
        yield normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~]"), "")
    if clean != "whitespace":
        yield normalizers.Replace(Regex(rf"(?<={_CASED})Σ(?!{_CASED})"), "ς")  # as Python lowers it at a word's end
        yield normalizers.Lowercase()
    yield normalizers.Replace(Regex(r"\s+"), " ")
    yield normalizers.Strip()


def _fixes() -> Iterator[normalizers.Normalizer]:
    """ftfy's steps in its order, and html.unescape."""
    for _ in range(3):  # so often open_clip reads entities: `&amp;amp;rsquo;`
        yield normalizers.Replace("&amp;", "&")
    for name, code in name2codepoint.items():
        yield normalizers.Replace(f"&{name};", chr(code))
    for name in sorted((name for name in html5 if not name.endswith(";")), key=len, reverse=True):
        yield normalizers.Replace(f"&{name}", html5[name])  # these are read without their end too: `&copy 2020`
    for code in _NUMBERED:
        yield normalizers.Replace(Regex(rf"&#(0*{code}|[xX]0*(?i:{code:x}));"), chr(code))
    yield normalizers.Replace(Regex(r"\x1b\[[\d;]*[a-zA-Z]"), "")
    for code in range(0x80, 0xA0):
        yield normalizers.Replace(chr(code), bytes([code]).decode("cp1252", errors="ignore") or chr(code))
    for table in (LIGATURES, WIDTH_MAP):
        for code, plain in table.items():
            yield normalizers.Replace(chr(code), plain)
    yield normalizers.Replace(Regex(SINGLE_QUOTE_RE.pattern), "'")
    yield normalizers.Replace(Regex(DOUBLE_QUOTE_RE.pattern), '"')
    yield normalizers.Replace(Regex(_CONTROL), "")
    yield normalizers.NFC()

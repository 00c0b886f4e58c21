"""The exported tokenizer against open_clip's own, on texts as the web has them."""

import itertools
import random
from pathlib import Path

import open_clip
import pytest
from transformers import AutoTokenizer

from tests.toy_clips import write_folder
from un2clip.errors import UserError
from un2clip.models.clip import Clip, load_clip
from un2clip.models.tokenizing import cleaning_tokenizer, tokenizer_of, vocabulary

BEGIN, END, LENGTH = 49406, 49407, 77
#: Pieces of captions: words of many scripts, and what their pages, editors and downloads leave in them.
PIECES = (
    "a photo of", "Red", "BUS", "don't", "WE'LL", "it’s", "I‘M", "“quoted”", "„unten“", "‚low‘", "'single'",
    "\"double\"", "naïve", "CAFÉ", "café", "Straße", "ẞ", "Łódź", "smörgåsbord", "ĳssel", "ﬁne", "ﬂag",
    "ﬃ", "ſt", "Ǆ", "ŉ", "İstanbul", "ışık", "ΌΔΟΣ", "ΣΑΣ", "Σ", "ὈΔΥΣΣΕΎΣ", "МОСКВА", "город", "Ґанок",
    "日本語", "のテキスト", "カタカナ", "ｶﾀｶﾅ", "中文图片", "繁體字", "한국어", "사진", "العربية", "صُورَة",
    "עברית", "हिन्दी", "चित्र", "ไทย", "ภาพ", "Tiếng Việt", "ქართული", "አማርኛ", "😀", "👍🏽",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "🇩🇪", "❤️", "☀", "™",
    "©", "®", "№5", "x²", "½", "①", "5°C", "€9.99", "$5", "£3", "100%", "ＦＵＬＬ", "１２３", "！",
    "\u3000", "#tag", "@user", "C++", "C#", "f(x)=y^2", "a_b", "___", "***", "—", "–", "-", "…", "...", "‥",
    "&amp;", "&lt;b&gt;", "&quot;hi&quot;", "&#39;s", "&#039;", "&#x27;", "&nbsp;", "&rsquo;", "&eacute;",
    "&hellip;", "&amp;amp;", "&amp;quot;", "&copy;", "&euro;", "&", "AT&T", "&notanentity;", "<br/>",
    "<img src='x'>", "https://example.com/a?b=c&d=e_f", "mail@example.org", "IMG_1234.JPG", "12:30",
    "1,234.56", "2026-01-01", "v1.2.3", "\t", "\n", "\r\n", "\xa0", "\u2009", "\u2028", "\u200b", "\u200d",
    "\xad", "\ufeff", "￼", "\u202e", "\x00", "\x07", "\x1b[31m", "\x7f", "\x0b", "|", "\\", "/", "~", "`",
    "^", "{c}", "[1]", "(2)", "•", "·", "★", "→", "\u200b",
)  # fmt: skip


def web_texts(n: int, seed: int) -> list[str]:
    """So many texts of such pieces, with blanks between them or none, some longer than the context."""
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < n:
        pieces = rng.choices(PIECES, k=rng.choice((1, 2, 3, 5, 8, 13, 80)))
        texts.append("".join(piece + rng.choice((" ", " ", "  ", "", ", ", ". ")) for piece in pieces))
        if "<" in texts[-1] and "&rsquo;" in texts[-1]:  # see test_what_the_docs_name_does_differ
            texts.pop()
    return texts


def read(ids: list[int]) -> list[int]:
    """What CLIP reads of a row: up to the first end."""
    return ids[: ids.index(END) + 1]


def differing(texts: list[str]) -> list[str]:
    ours = open_clip.SimpleTokenizer(context_length=LENGTH)(texts).tolist()
    theirs = cleaning_tokenizer(LENGTH)(texts, padding="max_length", truncation=True)["input_ids"]
    assert {len(row) for row in theirs} == {LENGTH}
    return [text for text, one, other in zip(texts, ours, theirs, strict=True) if read(one) != read(other)]


def test_each_piece_has_the_same_ids() -> None:
    """Alone, and between two words; also nothing, and more than the context holds."""
    assert (
        differing([*PIECES, *(f"a {piece} b" for piece in PIECES), "", " ", "word " * 200, "x" * 3_000, "é" * 500])
        == []
    )


def test_web_texts_have_the_same_ids() -> None:
    """1,000 texts of random pieces."""
    assert differing(web_texts(1_000, seed=0)) == []


@pytest.mark.parametrize(
    "text", ["sÃ£o paulo", "â€œquotedâ€\x9d", "<|endoftext|> in a text", "&bigstar;", "<b>it&rsquo;s</b>"]
)
def test_what_the_docs_name_does_differ(text: str) -> None:
    """Wrong encodings, Hugging Face's own words, entities beyond HTML 4, a curly quote's behind a <."""
    assert differing([text]) == [text]


@pytest.mark.parametrize("clean", ["lower", "whitespace", "canonicalize"])
def test_each_way_of_cleaning(clean: str) -> None:
    """open_clip has three, which a folder's configuration names."""
    ours = open_clip.SimpleTokenizer(context_length=LENGTH, clean=clean)
    theirs = cleaning_tokenizer(LENGTH, clean)
    for text in itertools.chain(PIECES, web_texts(50, seed=1)):
        (one,), other = ours([text]).tolist(), theirs(text, padding="max_length", truncation=True)["input_ids"]
        assert read(one) == read(other), text


def test_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    """By AutoTokenizer, with the cleaning; its vocabulary is CLIP's."""
    cleaning_tokenizer(LENGTH).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("It&rsquo;s “ＣＬＩＰ”")["input_ids"] == cleaning_tokenizer(LENGTH)('it\'s "clip"')["input_ids"]
    assert vocabulary()["<|startoftext|>"] == BEGIN and vocabulary()["<|endoftext|>"] == END
    assert tokenizer("a b", padding="max_length")["input_ids"] == [BEGIN, 320, 321, *[END] * (LENGTH - 3)]


def test_siglips_texts_are_cleaned_alike(tmp_path: Path) -> None:
    """canonicalize, by its own tokenizer of words: entities, quotes and punctuation go as in open_clip."""
    write_folder(tmp_path, "siglip")
    clip: Clip = load_clip(tmp_path)
    theirs = tokenizer_of(clip)
    for text in [*PIECES, *web_texts(50, seed=2), "Two &amp; “blue” SQUARES, of_a circle!"]:
        found = theirs(text, padding="max_length", truncation=True)["input_ids"]
        assert found == clip.tokenize([text])[0].tolist(), text
    clip.config["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"strip_sep_token": True}
    with pytest.raises(UserError, match="have no strip_sep_token, which this model's tokenizer_kwargs ask for"):
        tokenizer_of(clip)

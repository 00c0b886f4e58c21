"""How the laptop world is asked about: the words of the attributes, and question forms for training and for benchmarks.

No benchmark has a question that training has, and none has a word that training lacks, so a language model that begins
from scratch knows every word and must still read the sentence.
"""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

#: What each attribute is called in a question.
NOUNS: Mapping[str, str] = {
    "object": "shape",
    "colour": "colour",
    "count": "number",
    "position": "place",
    "orientation": "direction",
    "state": "filling",
    "feature": "mark",
    "texture": "texture",
    "distance": "distance",
    "glyph": "letter",
    "relation": "side",
    "background": "background",
}
#: What may be there besides an object, and the attribute whose first value says that it is not.
THINGS: Mapping[str, str] = {"dot": "feature", "ball": "relation", "letter": "glyph"}

#: Questions of training: for a word or an option, whether a value is the one, and whether something is there.
OPEN = (
    "What is the {noun}?",
    "Tell me the {noun}.",
    "In the picture, the {noun} is what?",
)
WHETHER = (
    "Is the {noun} {value}?",
    "In the picture, is {value} the {noun}?",
)
PRESENCE = (
    "Is there {thing}?",
    "Is {thing} in the image?",
)

#: Questions of the benchmarks.
CV_BENCH = "What is the {noun} in the picture?"
MMVP = "Tell me what the {noun} is."
NATURAL_CHOICE = "In the picture, what is the {noun}?"
NATURAL_WHETHER = "In the picture, is the {noun} {value}?"
POPE = "Is there {thing} in the image?"

#: NaturalBench's instructions, which its reader puts behind its questions.
BY_YES_NO = " Please answer Yes or No."
BY_OPTION = " Please output the letter corresponding to the correct option."


def with_article(thing: str) -> str:
    """`thing` behind its article."""
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def in_brackets(options: Sequence[str]) -> str:
    """Options as CV-Bench has them behind a question, a line each: `(A) red`."""
    return " Select from the following choices." + "".join(
        f"\n({letter}) {text}" for letter, text in zip(ascii_uppercase, options, strict=False)
    )


def in_line(options: Sequence[str]) -> str:
    """Options as NaturalBench has them behind a question: ` Option: A: red; B: green;`."""
    return " Option:" + "".join(f" {letter}: {text};" for letter, text in zip(ascii_uppercase, options, strict=False))

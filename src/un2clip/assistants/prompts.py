"""What a language model reads of a conversation, and of which tokens it must know the next one.

One chat template says it for training and for asking: LLaVA's vicuna_v1. Its `generation` marks are the answers. The
alignment has LLaVA's "plain": the picture, the caption, the end of the line.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers.utils.chat_template_utils import render_jinja_template

from un2clip.assistants.conversations import IMAGE, Conversation
from un2clip.errors import UserError

IGNORED = -100  # a label that does not count, in torch's cross_entropy
#: Of a conversation whose first answer is the caption of its picture.
PLAIN = (
    "{{ '" + IMAGE + "' }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '\\n' }}{% endgeneration %}{% endif %}{% endfor %}"
)
_USER = (
    "{{ 'USER: ' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '" + IMAGE + "\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' ' }}"
)


def chat_template(system: str, end: str) -> str:
    """LLaVA's vicuna_v1 for transformers: `SYSTEM USER: <image>\\n... ASSISTANT: ...</s>USER: ...`.

    Args:
        system: the sentence before the first turn; "" for none.
        end: the token behind each answer.
    """
    before = "{{ " + json.dumps(f"{system} ") + " }}" if system else ""
    answer = (
        "{{ 'ASSISTANT: ' }}{% generation %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{{ message['content'][0]['text'] }}{% endif %}{{ " + json.dumps(end) + " }}{% endgeneration %}"
    )
    return (
        before + "{% for message in messages %}{% if message['role'] == 'user' %}" + _USER + "{% else %}" + answer
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )  # fmt: skip


class Encoded(NamedTuple):
    """Token ids of one conversation, and the labels beside them: IGNORED but for the tokens of answers."""

    ids: list[int]
    labels: list[int]


def encode(conversation: Conversation, tokenizer: Any, template: str, image_tokens: int, max_tokens: int) -> Encoded:
    """What the language model reads, at most max_tokens; LLaVA cuts the rest off too.

    Args:
        template: of chat_template, or PLAIN.
        image_tokens: places that a picture takes.

    Raises:
        UserError: the picture does not fit into max_tokens.
    """
    rendered, spans = render_jinja_template(
        [list(_messages(conversation))], chat_template=template, return_assistant_tokens_mask=True
    )
    tokens = tokenizer(rendered[0], return_offsets_mapping=True)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    ids: list[int] = []
    labels: list[int] = []
    for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
        again = image_tokens if token == image else 1
        ids += [token] * again
        labels += [token if _within(start, end, spans[0]) else IGNORED] * again
    if image in ids[max_tokens:]:
        raise UserError(
            f"conversation {conversation.id}: the {image_tokens} tokens of its picture do not fit into max_tokens "
            f"({max_tokens}); raise it"
        )
    return Encoded(ids[:max_tokens], labels[:max_tokens])


def _within(start: int, end: int, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether a token has a letter of an answer: Llama's first token of an answer holds the blank before it as well."""
    return any(start < stop and end > begin for begin, stop in spans)


def _messages(conversation: Conversation) -> Iterator[dict[str, Any]]:
    for number, (question, answer) in enumerate(conversation.turns):
        text = {"type": "text", "text": question}
        shown = bool(conversation.image) and number == 0
        yield {"role": "user", "content": [{"type": "image"}, text] if shown else question}
        yield {"role": "assistant", "content": answer}

"""A LLaVA of real transformers classes at toy size, with random weights, saved as a folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH = 24, 8
TOKENS = (SIDE // PATCH) ** 2
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: {% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    " {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Every byte a token, and four of special meaning; real tokenizers, nothing to train."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>", "<image>"]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def save_llava(
    folder: Path,
    seed: int = 0,
    processor: dict[str, Any] | None = None,
    vision: Any = CLIPVisionConfig,
    side: int = SIDE,
    patch: int = PATCH,
    **config: Any,
) -> Path:
    """A folder as `save_pretrained` writes it; what is given changes the processor, the encoder, and LlavaConfig."""
    words = tokenizer()
    tower = vision(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=side,
        patch_size=patch,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    fields = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default", "image_token_index": 3}
    fields |= {"image_seq_length": (side // patch) ** 2}
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=text, **(fields | config)))
    with torch.no_grad():
        for parameter in model.parameters():  # transformers' own start is so small that every answer is alike
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5)
        model.lm_head.weight[:4] = 0.0  # special tokens are never the likeliest
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    usual = {"image_processor": images, "patch_size": patch, "vision_feature_select_strategy": "default"}
    usual |= {"num_additional_image_tokens": 1, "chat_template": TEMPLATE}
    LlavaProcessor(tokenizer=words, **(usual | (processor or {}))).save_pretrained(folder)
    return folder

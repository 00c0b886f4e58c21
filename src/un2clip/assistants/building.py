"""A LLaVA put together of an encoder and a language model: transformers' own classes, and its processor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from un2clip.assistants.conversations import IMAGE
from un2clip.assistants.pictures import Way, check_layer, picture_processor
from un2clip.assistants.prompts import chat_template
from un2clip.errors import UserError
from un2clip.files.outputs import permit
from un2clip.hashes import tensors_sha256
from un2clip.models.clip import Clip
from un2clip.models.huggingface import image_processor, to_hugging_face


@dataclass(frozen=True, kw_only=True)
class Assistant:
    """The model in float32, and how its inputs are made.

    Attributes:
        model: LlavaForConditionalGeneration.
        processor: LlavaProcessor, whose picture processor pads and whose chat template has the system sentence.
        encoder: name of the encoder's folder, for messages.
    """

    model: Any
    processor: Any
    encoder: str

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def image_tokens(self) -> int:
        """How many tokens the language model gets of a picture."""
        return int(self.model.config.image_seq_length)

    def pictures(self, way: Way) -> Any:
        """The picture processor for training."""
        own, side = self.processor.image_processor, self.model.config.vision_config.image_size
        return picture_processor(side, own.image_mean, own.image_std, own.resample, way)

    def language_sha256(self) -> str:
        """Hash of the language model's weights."""
        return tensors_sha256(
            {
                name: value
                for name, value in self.model.state_dict().items()
                if name.startswith(("model.language_model.", "lm_head."))
            }
        )


def build_assistant(
    clip: Clip, language: Any, tokenizer: Any, *, layer: int, system: str, seed: int, encoder: str = "the encoder"
) -> Assistant:
    """Put a LLaVA together. Nothing is copied: the language model becomes a part of it.

    Args:
        clip: any that transformers has a class for: CLIP's ViTs, and SigLIP, which has no class token.
        language, tokenizer: as open_language gives them; on the meta device too.
        layer: of the encoder, whose patch tokens are read; -2 in LLaVA-1.5.
        system: sentence before every conversation.
        seed: of the projector.

    Raises:
        UserError: transformers has no class for the encoder, it lacks the layer, or the vocabulary the image token.
    """
    try:
        both, images = to_hugging_face(clip), image_processor(clip)
    except UserError as error:
        said = str(error).removesuffix("; use --format=open_clip")
        raise UserError(f"{encoder} cannot be a LLaVA's encoder: {said}") from None
    vision = AutoModel.from_config(both.config.vision_config)
    vision.load_state_dict(_vision_state(both, vision))
    config = llava_config(vision.config, language.config, tokenizer, layer=layer, encoder=encoder)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.model.multi_modal_projector = LlavaMultiModalProjector(config).to(language.dtype)
    model.model.vision_tower = vision
    model.model.language_model, model.lm_head = language.base_model, language.get_output_embeddings()
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    strategy = config.vision_feature_select_strategy
    processor = LlavaProcessor(
        image_processor=picture_processor(
            vision.config.image_size, images.image_mean, images.image_std, images.resample, "pad"
        ),
        tokenizer=tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if strategy == "default" else 0,  # which "default" takes away again
        chat_template=chat_template(system, tokenizer.eos_token),
    )
    return Assistant(model=model.eval(), processor=processor, encoder=encoder)


def llava_config(vision: Any, text: Any, tokenizer: Any, *, layer: int, encoder: str = "the encoder") -> LlavaConfig:
    """LLaVA-1.5's configuration for an encoder's and a language model's.

    Raises:
        UserError: the encoder lacks the layer, or the vocabulary the image token.
    """
    check_layer(layer, vision.num_hidden_layers, encoder)
    token = tokenizer.get_vocab().get(IMAGE)
    if token is None or token >= text.vocab_size:
        raise UserError(f"the language model's vocabulary lacks the image token {IMAGE}")
    text.attention_dropout = 0.0  # drawn from torch's own state, which no checkpoint keeps
    has_class_token = vision.model_type == "clip_vision_model"
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if has_class_token else "full",
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(text.tie_word_embeddings),
    )


def save_assistant(assistant: Assistant, folder: Path, dtype: torch.dtype) -> None:
    """Write the folder that LlavaForConditionalGeneration and AutoProcessor load; the model is then in that dtype."""
    assistant.model.to(dtype).save_pretrained(folder)
    assistant.processor.save_pretrained(folder)
    permit(folder)


def _vision_state(both: Any, vision: Any) -> dict[str, Tensor]:
    """The image tower's tensors out of both towers', by the names of the tower alone."""
    found = {name.removeprefix("vision_model."): value for name, value in both.vision_model.state_dict().items()}
    return {name: found[name.removeprefix("vision_model.")] for name in vision.state_dict()}

"""A CLIP in Hugging Face's own classes: CLIPModel or SiglipModel, with processor and tokenizer.

Neither library ships a converter, so the names are mapped here, layer by layer; whatever has no counterpart
is refused, and the weights are loaded strictly. Both give the same embeddings within 1e-5 in fp32.
"""

import copy
import gzip
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import HFTokenizer, default_bpe
from open_clip.transformer import QuickGELU
from tokenizers import Regex, normalizers
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from un2clip.errors import UserError
from un2clip.files.outputs import permit
from un2clip.models.clip import Clip
from un2clip.models.state_dicts import clip_state, clip_vision_state, siglip_state

RESAMPLING = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers


def save_hugging_face(clip: Clip, folder: Path) -> None:
    """Write a folder for AutoModel, AutoProcessor, and for CLIPVisionModel and CLIPImageProcessor as LLaVA asks."""
    model = to_hugging_face(clip)
    images = image_processor(clip)
    processor_class = CLIPProcessor if isinstance(model, CLIPModel) else SiglipProcessor
    model.save_pretrained(folder)
    processor_class(images, tokenizer_of(clip)).save_pretrained(folder)
    images.save_pretrained(folder)  # LLaVA reads preprocessor_config.json
    permit(folder)


@torch.no_grad()
def to_hugging_face(clip: Clip) -> PreTrainedModel:
    """Convert both towers.

    Raises:
        UserError: a tower is neither a plain ViT with CLIP's text transformer nor SigLIP's.
    """
    if isinstance(clip.model, CLIP):
        model: PreTrainedModel = CLIPModel(
            CLIPConfig(
                text_config=_text_config(clip), vision_config=_vision_config(clip), projection_dim=clip.embed_dim
            )
        )
        state = clip_state(clip.model.state_dict())
    else:
        _check_siglip(clip)
        text, vision = _siglip_configs(clip)
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        state = siglip_state(clip.model.state_dict())
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def to_hugging_face_vision(clip: Clip) -> CLIPVisionModelWithProjection:
    """Convert the image tower alone, as a StableUnCLIPImg2ImgPipeline holds it.

    Raises:
        UserError: the tower is not a plain ViT.
    """
    model = CLIPVisionModelWithProjection(_vision_config(clip))
    model.load_state_dict(clip_vision_state(clip.model.visual.state_dict()))
    return model.eval()


def image_processor(clip: Clip) -> CLIPImageProcessor | SiglipImageProcessor:
    """The model's own preprocessing in Hugging Face's class."""
    cfg = {"interpolation": "bicubic", "resize_mode": "shortest"} | clip.config["preprocess_cfg"]
    px = clip.config["model_cfg"]["vision_cfg"]["image_size"]
    if cfg["interpolation"] not in RESAMPLING or cfg["resize_mode"] not in ("shortest", "squash"):
        raise UserError(f"Hugging Face's processors do not resize like {cfg['resize_mode']}, {cfg['interpolation']}")
    square = {"height": px, "width": px}
    given = {"image_mean": cfg["mean"], "image_std": cfg["std"], "resample": RESAMPLING[cfg["interpolation"]]}
    if not isinstance(clip.model, CLIP):
        return SiglipImageProcessor(size=square, **given)
    if cfg["resize_mode"] == "squash":
        return CLIPImageProcessor(size=square, do_center_crop=False, **given)
    return CLIPImageProcessor(size={"shortest_edge": px}, crop_size=square, **given)


def tokenizer_of(clip: Clip) -> PreTrainedTokenizerBase:
    """Hugging Face's tokenizer that gives the ids of the CLIP's own, up to the padding that CLIP never reads."""
    context_length = clip.config["model_cfg"]["text_cfg"]["context_length"]
    if not isinstance(clip.tokenize, HFTokenizer):
        return bpe_tokenizer(context_length)
    tokenizer = copy.deepcopy(clip.tokenize.tokenizer)
    tokenizer.model_max_length = context_length
    if clip.config["model_cfg"]["text_cfg"].get("tokenizer_kwargs", {}).get("clean") == "canonicalize":
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence(
            [_canonicalize(), *([backend.normalizer] if backend.normalizer else [])]
        )
    return tokenizer


def bpe_tokenizer(context_length: int) -> CLIPTokenizer:
    """Hugging Face's CLIPTokenizer over the vocabulary that open_clip ships."""
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]  # as open_clip's SimpleTokenizer reads it
    merges = [tuple(line.split()) for line in lines]
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(word, word): i for word, i in open_clip.SimpleTokenizer().encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=context_length)


def _canonicalize() -> normalizers.Normalizer:
    """What open_clip does to SigLIP's texts before tokenizing: no punctuation, lower case, single spaces."""
    return normalizers.Sequence(
        [
            normalizers.Replace("_", " "),
            normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^`{|}~]"), ""),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def _vision_config(clip: Clip) -> CLIPVisionConfig:
    visual = clip.model.visual
    vision_cfg = clip.config["model_cfg"]["vision_cfg"]
    if not hasattr(visual, "conv1") or not hasattr(visual, "class_embedding"):
        raise UserError(f"only a ViT tower converts to CLIPVisionModelWithProjection, got {type(visual).__name__}")
    block = visual.transformer.resblocks[0]
    return CLIPVisionConfig(
        hidden_size=vision_cfg["width"],
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=vision_cfg["layers"],
        num_attention_heads=block.attn.num_heads,
        image_size=vision_cfg["image_size"],
        patch_size=vision_cfg["patch_size"],
        projection_dim=clip.embed_dim,
        hidden_act=_activation(block.mlp.gelu),
    )


def _text_config(clip: Clip) -> CLIPTextConfig:
    text_cfg = clip.config["model_cfg"]["text_cfg"]
    block = clip.model.transformer.resblocks[0]
    return CLIPTextConfig(
        vocab_size=clip.model.vocab_size,
        hidden_size=text_cfg["width"],
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=text_cfg["layers"],
        num_attention_heads=block.attn.num_heads,
        max_position_embeddings=clip.model.context_length,
        projection_dim=clip.embed_dim,
        hidden_act=_activation(block.mlp.gelu),
        bos_token_id=clip.model.vocab_size - 2,
        eos_token_id=clip.model.vocab_size - 1,
        pad_token_id=clip.model.vocab_size - 1,
    )


def _check_siglip(clip: Clip) -> None:
    trunk = getattr(clip.model.visual, "trunk", None)
    fits = (
        trunk is not None
        and getattr(trunk, "attn_pool", None) is not None
        and trunk.cls_token is None
        and not list(clip.model.visual.head.parameters())
        and isinstance(getattr(clip.model.text, "text_projection", None), nn.Linear)
        and clip.model.text.pool_type == "last"
        and clip.model.logit_bias is not None
    )
    if not fits:
        raise UserError(
            f"only CLIP with a ViT, and SigLIP, have a Hugging Face class, got {type(clip.model.visual).__name__}"
        )


def _siglip_configs(clip: Clip) -> tuple[SiglipTextConfig, SiglipVisionConfig]:
    trunk, text = clip.model.visual.trunk, clip.model.text
    tokenizer = tokenizer_of(clip)
    block, text_block = trunk.blocks[0], text.transformer.resblocks[0]
    text_config = SiglipTextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.ln_final.normalized_shape[0],
        intermediate_size=text_block.mlp.c_fc.out_features,
        num_hidden_layers=len(text.transformer.resblocks),
        num_attention_heads=text_block.attn.num_heads,
        max_position_embeddings=text.context_length,
        hidden_act=_activation(text_block.mlp.gelu),
        layer_norm_eps=text.ln_final.eps,
        projection_size=clip.embed_dim,
        **{f"{token}_token_id": getattr(tokenizer, f"{token}_token_id") for token in ("pad", "bos", "eos")},
    )
    vision_config = SiglipVisionConfig(
        hidden_size=trunk.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(trunk.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=trunk.patch_embed.img_size[0],
        patch_size=trunk.patch_embed.patch_size[0],
        hidden_act=_activation(block.mlp.act),
        layer_norm_eps=trunk.norm.eps,
    )
    return text_config, vision_config


def _activation(module: nn.Module) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    assert isinstance(module, nn.GELU), type(module)
    return "gelu" if module.approximate == "none" else "gelu_pytorch_tanh"

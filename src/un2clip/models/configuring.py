"""The configuration of a CLIP folder that is Hugging Face's, as open_clip writes it."""

from pathlib import Path
from typing import Any

from un2clip.errors import UserError
from un2clip.files.texts import read_json
from un2clip.models.tokenizing import check_vocabulary

HF_CONFIG = "config.json"
HF_IMAGES = "preprocessor_config.json"
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder has the configuration that transformers writes."""
    return (folder / HF_CONFIG).is_file()


def hugging_face_config(folder: Path, name: str) -> dict[str, Any]:
    """model_cfg and preprocess_cfg of a CLIPModel's folder.

    Raises:
        UserError: it is another model, or something of it has no counterpart; says what.
    """
    from transformers import CLIPConfig

    content = _read(folder / HF_CONFIG, name)
    if (kind := content.get("model_type")) != "clip":
        hint = ""
        if kind == "siglip":
            hint = "; say its architecture, as --architecture=ViT-SO400M-14-SigLIP-384:webli"
        raise UserError(f"{name}: {folder} is Hugging Face's folder of a {kind}, and not of a clip{hint}")
    try:
        config = CLIPConfig.from_dict(content)
    except Exception as error:  # its checks are its own
        raise UserError(f"{name}: cannot use {folder / HF_CONFIG}: {type(error).__name__}: {error}") from None
    vision, text = config.vision_config, config.text_config
    if vision.hidden_act != text.hidden_act:
        raise UserError(f"{name}: {folder} has {vision.hidden_act} for images and {text.hidden_act} for texts")
    model_cfg: dict[str, Any] = {
        "embed_dim": config.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **_tower(vision, name),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            **_tower(text, name),
        },
    }
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2 says to Hugging Face: the highest of a text's ids
        model_cfg["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    if vision.hidden_act == "quick_gelu":
        model_cfg["quick_gelu"] = True
    check_vocabulary(folder, name)
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess_cfg(folder, vision.image_size, name)}


def _tower(config: Any, name: str) -> dict[str, Any]:
    """What both towers have: width, layers, the MLP's width, activation and epsilon."""
    ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * ratio) != config.intermediate_size:  # as open_clip rounds it
        ratio = (config.intermediate_size + 0.5) / config.hidden_size
    cfg: dict[str, Any] = {"width": config.hidden_size, "layers": config.num_hidden_layers, "mlp_ratio": ratio}
    if config.hidden_act == "gelu_pytorch_tanh":
        cfg["act_kwargs"] = {"approximate": "tanh"}
    elif config.hidden_act not in ("gelu", "quick_gelu"):
        raise UserError(f"{name}: open_clip has no activation {config.hidden_act}")
    return cfg | ({"norm_kwargs": {"eps": config.layer_norm_eps}} if config.layer_norm_eps != 1e-5 else {})


def _preprocess_cfg(folder: Path, image_size: int, name: str) -> dict[str, Any]:
    path = folder / HF_IMAGES
    given = _read(path, name)
    size, crop = (_sides(given.get(key)) for key in ("size", "crop_size"))
    square = [image_size, image_size]
    if size == [image_size] and crop in ([image_size], square) and given.get("do_center_crop", True):
        mode = "shortest"
    elif size == square and not given.get("do_center_crop", False):
        mode = "squash"
    else:
        raise UserError(f"{name}: {path} prepares images of another size, or otherwise than open_clip does")
    if given.get("resample") not in _RESAMPLING or not all(f"image_{key}" in given for key in ("mean", "std")):
        raise UserError(f"{name}: {path} must have image_mean, image_std and resample, 2 or 3")
    return {
        "mean": given["image_mean"], "std": given["image_std"], "interpolation": _RESAMPLING[given["resample"]],
        "resize_mode": mode,
    }  # fmt: skip


def _sides(size: Any) -> list[Any]:
    """[shortest edge], [height, width], or nothing; older files have a lone number for either."""
    if isinstance(size, dict):
        return [size[key] for key in ("shortest_edge", "height", "width") if size.get(key) is not None]
    return [] if size is None else [size]


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{name}: {path} must hold a mapping, got {type(content).__name__}")
    return content

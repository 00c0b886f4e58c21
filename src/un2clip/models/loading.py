"""Whether a tuned checkpoint is what it says: it loads, its text tower is its parent's, and it embeds."""

from pathlib import Path

import torch

from un2clip.errors import UserError
from un2clip.models.clip import load_clip, text_sha256


def check_loads(folder: Path, wanted_text_sha256: str) -> None:
    """Load a CLIP folder as whoever uses it will, and embed one grey image and one text.

    Args:
        folder: of open_clip's two files, and a tokenizer where the model has one.
        wanted_text_sha256: hash of the text tower of the CLIP it was tuned from: no method may touch that tower.

    Raises:
        UserError: it does not load, a weight or an embedding is not finite, or the text tower is another one.
    """
    clip = load_clip(folder)
    found = text_sha256(clip.model)
    if found != wanted_text_sha256:
        raise UserError(
            f"{folder} holds the text tower {found[:12]}, the CLIP it was tuned from has {wanted_text_sha256[:12]}; "
            "run `un2clip finetune` again"
        )
    images, texts = clip.embed(torch.zeros(1, 3, *clip.image_size)), clip.embed_texts([""])
    if images.shape != (1, clip.embed_dim) or texts.shape != images.shape:
        raise UserError(
            f"{folder} embeds an image as {list(images.shape)} and a text as {list(texts.shape)}; both must be "
            f"[1, {clip.embed_dim}], as its configuration says"
        )

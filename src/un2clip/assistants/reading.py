"""The batches of an assistant's training: conversations of one kind and of like length together, as LLaVA groups them.

The order is a formula of the seed, as in datasets/loader.py: any number of processes meets the same batches, and a
training goes on at any step.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from tqdm import tqdm

from un2clip import devices
from un2clip.assistants.conversations import Conversation
from un2clip.assistants.prompts import IGNORED, Encoded, encode
from un2clip.datasets import loader
from un2clip.datasets.images import decode
from un2clip.datasets.loader import Batch
from un2clip.errors import UserError, cause
from un2clip.training.batches import reported

View = Callable[[Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Talks(Dataset[Batch]):
    """Conversations with their pictures, each as a batch of one.

    A picture that cannot be read, and a conversation of which no answer is left within max_tokens, are not valid.

    Attributes:
        images: folder of the pictures.
        tokenizer, template, image_tokens, max_tokens: as of prompts.encode.
        view: picture -> pixel_values (3, H, W) float32.
        side: of a view, in pixels.
        rows: picture -> row of the cached features; None where they are not cached. Where they are, what was encoded
            is kept too: rendering a prompt again takes as long as half of a toy's step.
    """

    conversations: Sequence[Conversation]
    images: Path
    tokenizer: Any
    template: str
    image_tokens: int
    max_tokens: int
    view: View
    side: int
    rows: dict[str, int] | None = None
    kept: dict[int, Encoded] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Batch:
        talk = self.conversations[index]
        encoded = self.kept.get(index) or encode(
            talk, self.tokenizer, self.template, self.image_tokens, self.max_tokens
        )
        if self.rows is not None:
            self.kept[index] = encoded
        why = "" if any(label != IGNORED for label in encoded.labels) else f"no answer within {self.max_tokens} tokens"
        batch: Batch = {"ids": [encoded.ids], "labels": [encoded.labels], "shown": torch.tensor([bool(talk.image)])}
        if self.rows is not None:
            batch["rows"] = torch.tensor([self.rows.get(talk.image, 0)])
        else:
            pixel_values, broken = self.read(talk.image)
            batch["pixel_values"], why = pixel_values[None], broken or why
        return batch | {"keys": [f"{talk.id}: {why}" if why else talk.id], "valid": torch.tensor([not why])}

    def read(self, image: str) -> tuple[Tensor, str]:
        """The view of a picture, and why it cannot be read; zeros where it cannot, or there is none."""
        blank = torch.zeros(3, self.side, self.side)
        if not image:
            return blank, ""
        try:
            return self.view(decode(self.images / image)), ""
        except Exception as error:  # on hostile bytes Pillow's readers raise nearly anything
            return blank, f"{image} cannot be read: {cause(error)}"


def batches(
    talks: Talks,
    *,
    batch_size: int,
    seed: int,
    step: int,
    workers: int,
    device: torch.device,
    features: Tensor | None = None,
) -> Iterator[Batch]:
    """This process's part of the batch of every step from `step` on.

    Args:
        batch_size: conversations of all processes together.
        features: (pictures, tokens, width), where they are cached: Talks.rows says which row is whose.

    Returns:
        keys, valid (B,), input_ids (B, L), labels (B, L), attention_mask (B, L) int64, shown (B,) bool, and
        pixel_values (B, 3, H, W) or features (B, tokens, width) float32, zeros where nothing is shown.
    """
    mine = slice(devices.rank(), None, devices.world_size())
    order = (batch[mine] for batch in grouped(talks.conversations, batch_size, seed, step))
    pad = talks.tokenizer.pad_token_id
    for batch in reported(loader.read(talks, order, workers)):
        ids, labels = batch.pop("ids"), batch.pop("labels")
        batch |= {
            "input_ids": _padded(ids, pad),
            "labels": _padded(labels, IGNORED),
            "attention_mask": _padded([[1] * len(row) for row in ids], 0),
        }
        if features is not None:
            batch["features"] = features[batch.pop("rows")] * batch["shown"][:, None, None]
        yield loader.to_device(batch, device)


def grouped(talks: Sequence[Conversation], batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Full batches without end, from batch `start` on; each epoch in an order of its own, which the seed decides.

    Conversations with a picture and those without go in batches of their own, but for one of what is left of both; in
    a batch the longest come first, so that every process and microbatch gets like ones. Of an epoch fewer than a batch
    are left out, others each time.

    Raises:
        UserError: there are fewer conversations than a batch.
    """
    if len(talks) < batch_size:
        raise UserError(f"there are {len(talks)} conversations, fewer than one batch of {batch_size}; lower batch_size")
    an_epoch = len(talks) // batch_size
    epoch, skip = divmod(start, an_epoch)
    shown = torch.tensor([bool(talk.image) for talk in talks])
    words = [talk.words for talk in talks]
    while True:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        full: list[list[int]] = []
        left: list[int] = []
        for kind in (shown, ~shown):
            index = kind.nonzero().flatten()
            index = index[torch.randperm(len(index), generator=rng)]
            whole = len(index) // batch_size * batch_size
            full += [part.tolist() for part in index[:whole].split(batch_size)] if whole else []
            left += index[whole:].tolist()
        full += [left[:batch_size]] if len(left) >= batch_size else []
        assert len(full) == an_epoch
        for number in torch.randperm(an_epoch, generator=rng).tolist()[skip:]:
            yield sorted(full[number], key=lambda i: (-words[i], i))
        epoch, skip = epoch + 1, 0


def pictures_of(talks: Sequence[Conversation]) -> dict[str, int]:
    """Each picture once, with the row that its features get."""
    return {image: row for row, image in enumerate(sorted({talk.image for talk in talks} - {""}))}


@torch.no_grad()
def cached_features(talks: Talks, encode_pictures: Callable[[Tensor], Tensor], batch_size: int) -> Tensor:
    """(pictures, tokens, width) float32 on the CPU: of every picture of the conversations, in the order of their rows.

    Args:
        encode_pictures: pixel_values (B, 3, H, W) -> (B, tokens, width).

    Raises:
        UserError: a picture cannot be read.
    """
    assert talks.rows is not None
    images = list(talks.rows)
    found = []
    for start in tqdm(range(0, len(images), batch_size), unit="batch", mininterval=1, desc="features"):
        views = []
        for image in images[start : start + batch_size]:
            pixel_values, why = talks.read(image)
            if why:
                raise UserError(f"{talks.images}: {why}")
            views.append(pixel_values)
        found.append(encode_pictures(torch.stack(views)).float().cpu())
    return torch.cat(found) if found else torch.zeros(1, 0, 0)


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

"""CLIP checkpoints: a folder of open_clip_model.safetensors and open_clip_config.json, no pickle.

`open_clip.create_model_and_transforms("local-dir:FOLDER")` loads every folder written here. A model with a
tokenizer of Hugging Face's (SigLIP) has that tokenizer's files beside them, so nothing is fetched. One encoder is no
CLIP, InternVL's (models/internvl.py): it lies in the same two files, and open_clip has no class for it.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import open_clip
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from un2clip.datasets.images import STRIP, without_ends
from un2clip.devices import autocast
from un2clip.errors import UserError, cause
from un2clip.files.outputs import save_tensors
from un2clip.files.texts import read_json
from un2clip.files.weights import check_kinds, read_weights
from un2clip.hashes import tensors_sha256
from un2clip.models.sizes import check_config, check_finite, check_sizes
from un2clip.models.texts import Texts, text_tower

# Without gradients torch would take another attention kernel, and an encoder would differ from itself by 1e-7.
torch.backends.mha.set_fastpath_enabled(False)

CPU = torch.device("cpu")
WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"
#: Key of model_cfg where the encoder is InternVL's: the content of its config.json.
INTERNVL = "internvl"
#: Files that a Hugging Face tokenizer may consist of.
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A CLIP model, and how its inputs are made.

    Attributes:
        model: open_clip's own class: towers `visual` and, for SigLIP, `text`. `encode_image` gives the
            embedding, (B, D) float32, not L2-normalised.
        preprocess: PIL image -> pixel_values (3, H, W) float32, by the model's own preprocess_cfg; of strips the
            middle, as without_ends has it.
        tokenize: texts -> token ids (B, L) int64.
        config: content of open_clip_config.json.
        texts: embeddings of texts that are kept, for a model that is not trained; None for none.
        precision: of the towers' arithmetic; embeddings are fp32 all the same.
    """

    model: CLIP | CustomTextCLIP
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    config: dict[str, Any]
    texts: Texts | None = None
    precision: Precision = "fp32"

    @property
    def embed_dim(self) -> int:
        return int(self.config["model_cfg"]["embed_dim"])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the encoder reads, in pixels."""
        size = self.model.visual.image_size
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def preprocess_at(self, image_px: int) -> Callable[[Image.Image], Tensor]:
        """`preprocess` for square images of another side."""
        if self.image_size == (image_px, image_px):
            return self.preprocess
        cfg: Any = self.model.visual.preprocess_cfg
        made = image_transform_v2(PreprocessCfg(**{**cfg, "size": image_px}), is_train=False)
        return _of_strips(made, cfg["resize_mode"], image_px)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def arithmetic(self) -> torch.autocast:
        """Around what the towers compute."""
        return autocast(self.device, self.precision)

    def _encode_text(self, ids: Tensor, normalize: bool = False) -> Tensor:
        """open_clip's encode_text, whose result is fp32 whatever the towers compute in."""
        with self.arithmetic():
            found: Tensor = self.model.encode_text(ids).float()
        return torch.nn.functional.normalize(found, dim=-1) if normalize else found

    @torch.no_grad()
    def embed(self, pixel_values: Tensor, names: Sequence[object] = ()) -> Tensor:
        """pixel_values (B, 3, H, W), anywhere -> embedding (B, D) on the model's device, not L2-normalised.

        Args:
            names: what the B images are called, for a message.

        Raises:
            UserError: it is not finite: every comparison with NaN is false, so a benchmark would score it all the same.
        """
        with self.arithmetic():
            embedded: Tensor = self.model.encode_image(pixel_values.to(self.device, non_blocking=True))
        return finite(embedded.float(), "image", names)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Texts -> embedding (N, D) on the model's device, not L2-normalised; finite, as `embed` has it."""

        def make() -> Tensor:
            ids = self.tokenize(texts).to(self.device)
            return finite(self._encode_text(ids), "text", [f"{t!r}" for t in texts])

        return self.texts.kept(texts, len(texts), self.device, make) if self.texts else make()

    def embed_classes(
        self, names: list[str], templates: Sequence[Callable[[str], str]], *, at_once: int, progress: bool = False
    ) -> Tensor:
        """Embeddings (D, C) of classes, L2-normalised: each the mean of its normalised templates, by open_clip.

        Classes `at_once` go through the tower together; another number rounds otherwise.
        """

        def make() -> Tensor:
            made = open_clip.build_zero_shot_classifier(
                SimpleNamespace(encode_text=self._encode_text), self.tokenize, names, templates,
                num_classes_per_batch=at_once, device=self.device, use_tqdm=progress,
            )  # fmt: skip
            return finite(made.T, "class", names).T

        if not self.texts:
            return make()
        filled = [template(name) for name in names for template in templates]
        return self.texts.kept_on_disk(filled, at_once * len(templates), self.device, make)

    def keeping_texts(self, source: Path, folder: Path | None, *others: "Clip") -> "Clip":
        """The same model, which keeps embeddings of texts: in memory with others of its tower, and in `folder`.

        Args:
            source: the folder that it was loaded from.
        """
        files = [source / name for name in TOKENIZER if (source / name).is_file()]
        tower = text_tower(text_sha256(self.model), self.config, files)
        texts = Texts(tower=tower if self.precision == "fp32" else f"{tower} {self.precision}", folder=folder)
        shared = [each.texts for each in others if each.texts is not None and each.texts.tower == texts.tower]
        return dataclasses.replace(self, texts=shared[0] if shared else texts)


#: CLIP's own tokenizer by the text tower's configuration: it takes longer to make than a small CLIP to load.
_TOKENIZERS: dict[str, open_clip.SimpleTokenizer] = {}


def _tokenizer(folder: Path, text_cfg: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """open_clip's for a folder; one that is not read from the folder is shared by all that are configured alike."""
    name = json.dumps(text_cfg, sort_keys=True)
    if name in _TOKENIZERS:
        return _TOKENIZERS[name]
    never = {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}
    made: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(f"local-dir:{folder}", **never)
    if isinstance(made, open_clip.SimpleTokenizer):
        _TOKENIZERS[name] = made
    return made


def load_clip(folder: Path, device: torch.device = CPU) -> Clip:
    """Load a CLIP folder in fp32 and evaluation mode; whatever trains sets its own mode.

    Raises:
        UserError: a file is absent or damaged, the weights are not finite or do not fit the configuration, or the
            configuration asks for code or for another model from the hub.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a CLIP checkpoint: it has no {name}")
    try:
        config = read_json(folder / CONFIG)
        if is_textless(config):
            return _load_textless(config, folder, device)
        check_config(config["model_cfg"], str(folder))
        check_kinds(folder / WEIGHTS)
        check_sizes(config, folder / WEIGHTS)
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenize = _tokenizer(folder, config["model_cfg"]["text_cfg"])
    except UserError as error:
        raise UserError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None
    except Exception as error:  # a broken configuration raises nearly anything in open_clip
        what = f"{type(error).__name__}: {cause(error)}"
        raise UserError(f"{folder} does not load as an open_clip model: {what}") from None
    check_finite(model, str(folder / WEIGHTS))
    clip = Clip(model=model.eval().to(device), preprocess=preprocess, tokenize=tokenize, config=config)
    _of_strips(preprocess, model.visual.preprocess_cfg["resize_mode"], min(clip.image_size))
    return clip


def is_textless(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of an encoder without a text tower (models/internvl.py)."""
    return INTERNVL in config["model_cfg"]


def _load_textless(config: dict[str, Any], folder: Path, device: torch.device) -> Clip:
    """InternVL's image tower and connector; open_clip has no class for them."""
    from un2clip.models.adapting import load_strictly
    from un2clip.models.internvl import new_textless  # transformers' classes, for these alone

    model: Any = new_textless(config, folder / WEIGHTS)
    load_strictly(model, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    cfg = model.visual.preprocess_cfg
    size = min(model.visual.image_size)
    made = image_transform_v2(PreprocessCfg(**{**cfg, "size": size}), is_train=False)
    preprocess = _of_strips(made, cfg["resize_mode"], size)
    return Clip(model=model.eval().to(device), preprocess=preprocess, tokenize=_no_texts, config=config)


def _no_texts(texts: list[str]) -> Tensor:
    raise UserError("this encoder has no text tower, so it reads no texts")


def _of_strips(preprocess: Any, mode: str, image_px: int) -> Callable[[Image.Image], Tensor]:
    """The same transform, which takes the middle of a strip."""
    if mode != "squash":  # of what is longer than its view's own pixels, "longest" would make a line without width
        at_most = STRIP if mode == "shortest" else image_px
        preprocess.transforms.insert(0, functools.partial(without_ends, ratio=at_most))
    transform: Callable[[Image.Image], Tensor] = preprocess
    return transform


def finite(embeddings: Tensor, of: str, names: Sequence[object] = ()) -> Tensor:
    """The embeddings (B, ...), or what follows from them; one without a length to divide by is a UserError.

    Zero is refused too, and what is so long that its length is infinite: their cosines with everything are 0.

    Args:
        of: what they are embeddings of.
        names: of the B.
    """
    lengths = embeddings.flatten(1).norm(dim=1)
    if not (good := lengths.isfinite() & (lengths > 0)).all():
        first = int(good.int().argmin())
        which = f"{of} {names[first]}" if names else f"{of} {first} of {len(embeddings)}"
        raise UserError(
            f"the embedding of {which} is not finite, or zero; this encoder cannot be used, take another checkpoint"
        )
    return embeddings


def clip_files(folder: Path) -> tuple[str, ...]:
    """Names of the files of a CLIP folder that open_clip loads; weights and configuration come first."""
    return WEIGHTS, CONFIG, *(name for name in TOKENIZER if (folder / name).is_file())


def save_clip(clip: Clip, folder: Path) -> None:
    """Write the model, its configuration and its tokenizer; the same weights give the same bytes."""
    save_model(clip.model, clip.config, folder)
    if isinstance(clip.tokenize, HFTokenizer):
        clip.tokenize.save_pretrained(folder)


def save_model(model: torch.nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Write weights and configuration alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_tensors(model.state_dict(), folder / WEIGHTS)


def encoder_sha256(folder: Path) -> str:
    """Hash of the weights of a CLIP folder, both towers.

    Raises:
        UserError: the weights are absent or damaged.
    """
    try:
        return tensors_sha256(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {folder / WEIGHTS}: {error}") from None


def text_sha256(model: torch.nn.Module) -> str:
    """Hash of everything that is not the image tower: it must be the same before and after every method."""
    return tensors_sha256({name: value for name, value in model.state_dict().items() if not name.startswith("visual.")})

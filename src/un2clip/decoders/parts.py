"""One part of a decoder on disk: every weight from its own file, none missing, none left over, all of them finite.

The libraries fill a missing weight with random numbers, and cast integers, with a warning at most.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from diffusers import DDPMScheduler
from transformers import PreTrainedModel

from un2clip.errors import UserError, cause
from un2clip.files.texts import read_json
from un2clip.files.weights import check_kinds
from un2clip.models.sizes import check_finite

#: No size of a network is larger, by far; one that is would take the machine's memory before it fits no weight.
LARGEST_SIZE, MOST_TIMESTEPS = 10_000_000, 100_000
NAMED = 3  # so many wrong weights are named


@contextmanager
def named(folder: Path) -> Iterator[None]:
    """Whatever goes wrong while a folder of the libraries' is read is a UserError that names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    except Exception as error:  # a broken configuration raises nearly anything in them
        raise UserError(f"{folder}: {type(error).__name__}: {cause(error)}") from None


def load_part(cls: Any, folder: Path, part: str) -> Any:
    """A network of diffusers' or transformers' in float32, from safetensors only; half precision is cast up.

    Args:
        cls: the class.
        part: the subfolder.

    Raises:
        UserError: a weight is missing, has no place, is an integer or is not finite.
        Exception: the libraries' own, where they cannot read it; see `named`.
    """
    check_json(folder / part)
    for file in sorted((folder / part).glob("*.safetensors")):
        if ".fp16." not in file.name:
            check_kinds(file)
    dtype = "dtype" if issubclass(cls, PreTrainedModel) else "torch_dtype"
    with _quiet():
        model, info = cls.from_pretrained(
            folder, subfolder=part, use_safetensors=True, output_loading_info=True, **{dtype: torch.float32}
        )
    wrong = [f"{key} is missing" for key in sorted(info["missing_keys"])]
    wrong += [f"{key} has no place" for key in sorted(info["unexpected_keys"])]
    if wrong:
        more = f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise UserError(f"the weights of {part}/ do not fit {cls.__name__}: {'; '.join(wrong[:NAMED])}{more}")
    check_finite(model, f"{part}/")
    return model


def load_noise_schedule(folder: Path, part: str) -> DDPMScheduler:
    """Training's scheduler, with the betas and the prediction type of whatever sampler the directory ships.

    Other samplers' configurations lack `clip_sample`, which diffusers would then switch on: it clips the predicted
    latents to [-1, 1], which is meant for pixels. StableDiffusionPipeline mends this, the unCLIP pipeline does not.
    """
    check_json(folder / part)
    config = DDPMScheduler.load_config(folder, subfolder=part)
    if "beta_schedule" not in config:
        raise UserError(f"{part}/ has no beta_schedule: {config.get('_class_name')} is no diffusion with betas")
    steps = config.get("num_train_timesteps", 1)
    if type(steps) is not int or not 1 <= steps <= MOST_TIMESTEPS:
        raise UserError(f"{part}/ must have 1 to {MOST_TIMESTEPS} num_train_timesteps, got {cause(repr(steps))}")
    scheduler = DDPMScheduler.from_config(config, clip_sample=False)
    left = scheduler.alphas_cumprod
    if not (left.isfinite().all() and (left >= 0).all() and (left <= 1).all() and (left.diff() <= 0).all()):
        raise UserError(f"the betas of {part}/ are no noise schedule: what is left of an image must fall from 1 to 0")
    return scheduler


def check_json(folder: Path) -> None:
    """Hold every JSON file of a part against our own reader and limits, before a library opens it."""
    for file in sorted(folder.glob("*.json")):
        content = read_json(file)
        if file.name.endswith("config.json") and not file.name.startswith("tokenizer") and isinstance(content, dict):
            for key, value in content.items():
                sizes = value if isinstance(value, list) else [value]
                if any(type(size) in (int, float) and abs(size) > LARGEST_SIZE for size in sizes):
                    raise UserError(f"{file}: {key} is {cause(repr(value))}, larger than any that is known")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' reports of what does not fit: that is an error here, and said in one line."""
    with ExitStack() as stack:
        for logging in (diffusers.utils.logging, transformers.utils.logging):
            stack.callback(logging.set_verbosity, logging.get_verbosity())
            logging.set_verbosity_error()
        yield

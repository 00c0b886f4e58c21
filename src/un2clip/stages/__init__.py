"""The stages of the pipeline, and the one way to run them.

A stage is `stage(params, *, names...) -> None`. Its keyword names are its inputs and outputs: paths, a word such
as a seed or a method, or another stage's section of the numbers, under that stage's name. It reads no environment,
no params.yaml and no global, and writes only below its outputs; the same inputs give the same bytes on CPU. The
shell, DVC and Kubeflow all come through `run_stage` and differ only in who supplies the names.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from un2clip.config import build, convert
from un2clip.errors import UserError, disks_in_words
from un2clip.processes import terminable

#: In the order of the graph (dvc.yaml).
STAGES = (
    "shapes", "ingest", "backbones", "latents", "finetune", "diffusion_loss", "evaluate", "reconstruct",
    "assistant", "ask", "compare", "promote",
)  # fmt: skip
#: Names of seeds, which must not be negative.
SEEDS = ("seed", "language_seed")


def get_stage(name: str) -> Callable[..., None]:
    """The stage function called `name`, imported on demand so that `--help` stays quick."""
    if name not in STAGES:
        raise UserError(f"unknown stage {name!r}; known: {', '.join(STAGES)}")
    stage: Callable[..., None] = getattr(importlib.import_module(f"un2clip.stages.{name}"), name)
    return stage


def run_stage(name: str, params: Mapping[str, Any], **names: Any) -> None:
    """Run one stage: its section read strictly, its names converted, a run in MLflow around it.

    Args:
        name: a stage of STAGES.
        params: the stage's own section of params.yaml, as plain data.
        names: the stage's inputs and outputs by name; paths may be text.

    Raises:
        UserError: a mistake that the user can mend, a full disk among them.
        Terminated: SIGTERM came; the run in MLflow is closed as KILLED.
    """
    from un2clip import tracking  # on demand: the download image has nothing of what it imports

    stage = get_stage(name)
    hints = get_type_hints(stage)
    wanted = [key for key in inspect.signature(stage).parameters if key != "params"]
    if set(names) != set(wanted):
        raise UserError(f"stage {name} takes {', '.join(wanted)}; got {', '.join(names) or 'nothing'}")
    section = stage_params(name, params)
    arguments = {key: _argument(hints[key], names[key], key) for key in wanted}
    folders = [folder for folder in arguments.values() if isinstance(folder, Path)]
    with terminable(), tracking.stage_run(name, params=params, names=arguments), disks_in_words(folders[::-1]):
        stage(section, **arguments)


def stage_params(name: str, params: Mapping[str, Any]) -> Any:
    """The stage's own dataclass from its section of params.yaml, read strictly."""
    return build(get_type_hints(get_stage(name))["params"], params, name)


def sections(name: str) -> list[str]:
    """Names of the other sections of the numbers that a stage takes; their values come from there, not from a flag."""
    hints = get_type_hints(get_stage(name))
    return [key for key in inspect.signature(get_stage(name)).parameters if key in STAGES and is_dataclass(hints[key])]


def _argument(hint: Any, value: Any, name: str) -> Any:
    if hint is Path:
        return _path(value, name)
    if hint in (list[Path], list[str]):
        items = [value] if isinstance(value, str | Path) else value
        return [_path(item, name) if hint == list[Path] else convert(str, item, name) for item in items]
    if name in SEEDS and convert(int, value, name) < 0:
        raise UserError(f"{name} must not be negative, got {value}")
    return convert(hint, value, name)


def _path(value: str | Path, name: str) -> Path:
    """The path; a UserError where it is a link to a disk that is not there, on which nothing can be made."""
    path = Path(value)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{name}={path} is a link to {path.readlink()}, which is not there; make it, or mount its disk")
    return path

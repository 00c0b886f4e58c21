"""The graph of dvc.yaml for Kubeflow, task by task in the same order; a test proves the two equal.

Compile it, with the numbers of params.yaml as defaults, to the checked-in pipelines/un2clip.yaml:

    python -m pipelines.un2clip

or, with an overlay, to a file of your own:

    python -m pipelines.un2clip --params OVERLAY.yaml --to MINE.yaml
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kfp import compiler, dsl

from components.backbones.component import backbones
from components.compare.component import compare
from components.diffusion_loss.component import diffusion_loss
from components.evaluate.component import evaluate
from components.finetune.component import finetune
from components.ingest.component import ingest
from components.latents.component import latents
from components.promote.component import promote
from components.reconstruct.component import reconstruct
from components.shapes.component import shapes
from pipelines.resources import CLUSTER, place
from un2clip.config import UserError, merge, read_yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pipelines" / "un2clip.yaml"
HEADER = "# Compiled from pipelines/un2clip.py and params.yaml by `python -m pipelines.un2clip`; do not edit.\n"


@dsl.pipeline(name="un2clip", description="Images in, a CLIP image encoder that sees more out, with the evidence.")
def un2clip(
    seed: int,
    method: str,
    device: str,
    checkpoints: str,
    benchmarks: list,
    shapes_params: dict,
    ingest_params: dict,
    backbones_params: dict,
    latents_params: dict,
    finetune_params: dict,
    diffusion_loss_params: dict,
    evaluate_params: dict,
    reconstruct_params: dict,
    compare_params: dict,
    promote_params: dict,
    image: str,
    accelerator_type: str,
    accelerator_limit: str,
    cpu: str,
    memory: str,
    node_selector: dict,
    tolerations: list,
    mlflow_secret: str,
):
    """State the graph. Each stage has its own section, so that a knob of one spares the others' cache.

    Args:
        seed: of everything random.
        method: row of the method table.
        device: auto, cpu or cuda, for the stages that compute.
        checkpoints: folder for the state of trainings that are not finished; it helps on a volume that outlives a pod.
        benchmarks: names of the benchmarks to evaluate.
        shapes_params: section `shapes` of params.yaml, whole; likewise the other sections.
        ingest_params: see shapes_params.
        backbones_params: see shapes_params.
        latents_params: see shapes_params.
        finetune_params: see shapes_params.
        diffusion_loss_params: see shapes_params.
        evaluate_params: see shapes_params.
        reconstruct_params: see shapes_params.
        compare_params: see shapes_params.
        promote_params: see shapes_params.
        image: container image of every stage.
        accelerator_type: resource name of the accelerators, such as nvidia.com/gpu.
        accelerator_limit: number of accelerators of each accelerated stage, as a text; "0" for none.
        cpu: cores of each accelerated stage.
        memory: memory of each accelerated stage.
        node_selector: labels of the nodes for accelerated stages.
        tolerations: tolerations of accelerated stages, as in a pod's spec.
        mlflow_secret: name of an optional Secret with MLFLOW_TRACKING_URI and its credentials.
    """
    placed = partial(
        place,
        image=image,
        accelerator_type=accelerator_type,
        accelerator_limit=accelerator_limit,
        cpu=cpu,
        memory=memory,
        node_selector=node_selector,
        tolerations=tolerations,
        mlflow_secret=mlflow_secret,
    )

    world = placed(shapes(params=shapes_params, seed=seed))
    ingested = placed(ingest(params=ingest_params, images=world.outputs["images"]))
    pretrained = placed(backbones(params=backbones_params, seed=seed, device=device, images=world.outputs["images"]))
    encoded = placed(
        latents(
            params=latents_params,
            device=device,
            shards=ingested.outputs["shards"],
            backbones=pretrained.outputs["backbones"],
        )
    )
    tuned = placed(
        finetune(
            params=finetune_params,
            method=method,
            seed=seed,
            device=device,
            checkpoints=checkpoints,
            shards=ingested.outputs["shards"],
            backbones=pretrained.outputs["backbones"],
            latents=encoded.outputs["latents"],
        )
    )
    diagnosed = placed(
        diffusion_loss(
            params=diffusion_loss_params,
            seed=seed,
            device=device,
            shards=ingested.outputs["shards"],
            backbones=pretrained.outputs["backbones"],
            latents=encoded.outputs["latents"],
            encoder=tuned.outputs["encoder"],
        )
    )
    with dsl.ParallelFor(benchmarks) as benchmark:
        evaluated = placed(
            evaluate(
                params=evaluate_params,
                benchmark=benchmark,
                device=device,
                benchmarks=world.outputs["benchmarks"],
                backbones=pretrained.outputs["backbones"],
                encoder=tuned.outputs["encoder"],
            )
        )
    drawn = placed(
        reconstruct(
            params=reconstruct_params,
            seed=seed,
            device=device,
            shards=ingested.outputs["shards"],
            backbones=pretrained.outputs["backbones"],
            encoder=tuned.outputs["encoder"],
        )
    )
    # A list of artifacts can only be collected from one loop, so the diffusion loss's scores come beside it.
    compared = placed(
        compare(
            params=compare_params,
            seed=seed,
            scores=dsl.Collected(evaluated.outputs["scores"]),
            diffusion_loss=diagnosed.outputs["scores"],
            encoder=tuned.outputs["encoder"],
            reconstructions=drawn.outputs["reconstructions"],
        )
    )
    placed(
        promote(
            params=promote_params,
            scores=dsl.Collected(evaluated.outputs["scores"]),
            diffusion_loss=diagnosed.outputs["scores"],
            encoder=tuned.outputs["encoder"],
            report=compared.outputs["report"],
        )
    )


def arguments(params: Mapping[str, Any]) -> dict[str, Any]:
    """The run's pipeline arguments from the content of a params file; the cluster's are in `CLUSTER`.

    Raises:
        UserError: a section is missing, or holds a null, which Kubeflow cannot carry.
    """
    keys = {name: name.removesuffix("_params") for name in un2clip.component_spec.inputs if name not in CLUSTER}
    missing = [key for key in keys.values() if key not in params]
    if missing:
        raise UserError(f"params.yaml has no {', '.join(missing)}; the pipeline needs {', '.join(keys.values())}")
    nulls = [found for key in keys.values() for found in _nulls(params[key], key)]
    if nulls:
        raise UserError(f"{', '.join(nulls)} must not be null: a Kubeflow parameter cannot carry it; name a value")
    return {name: params[key] for name, key in keys.items()}


def compile_to(path: Path, params: Mapping[str, Any]) -> None:
    """Compile the pipeline with `params` as the defaults of its parameters; the same input gives the same bytes."""
    with TemporaryDirectory() as folder:
        raw = Path(folder) / "un2clip.yaml"
        compiler.Compiler().compile(un2clip, str(raw), pipeline_parameters={**CLUSTER, **arguments(params)})
        text = raw.read_text()
    # kfp's own header prints the dict parameters in an order that changes from run to run
    path.write_text(re.sub(r"\A(#.*\n)*", lambda _: HEADER, text))


def read_params(overlay: Path | None = None) -> dict[str, Any]:
    """Read params.yaml, with an overlay (or another whole params file) laid over it.

    Raises:
        UserError: the overlay adds a key, or names images of its own, which this pipeline would ignore.
    """
    params = read_yaml(ROOT / "params.yaml")
    if overlay is None:
        return params
    merged = merge(params, read_yaml(overlay))
    for name in ("images", "benchmark_data"):
        if merged[name] != params[name]:
            raise UserError(f"{overlay}: {name} cannot be set for Kubeflow, whose pipeline takes the laptop world's")
    return merged


def _nulls(value: Any, name: str) -> Iterator[str]:
    if value is None:
        yield name
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nulls(item, f"{name}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _nulls(item, f"{name}[{i}]")


def main(words: list[str] | None = None) -> None:
    """Compile from the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.un2clip", description="Compile the pipeline.")
    parser.add_argument("--params", type=Path, metavar="FILE", help="overlay on params.yaml")
    parser.add_argument(
        "--to", type=Path, metavar="FILE", default=PACKAGE, help="compiled pipeline (default: %(default)s)"
    )
    options = parser.parse_args(words)
    try:
        compile_to(options.to, read_params(options.params))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"compiled {options.to}")


if __name__ == "__main__":
    main()

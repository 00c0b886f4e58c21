"""The model card: what it is, how it is loaded, what was measured, on which data, what it cost, what is not known."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from un2clip import __version__
from un2clip.evidence.report import Comparison, Report, interval, number
from un2clip.evidence.units import get_unit
from un2clip.models.publishing.layout import CROISSANT, EVALS, EVIDENCE, Custody

_SIGNED = {
    "key": "`model.sig` is an OpenSSF signature over all files, made with a private key: "
    "`un2clip verify FOLDER --key PUBLIC.pem`.",
    "keyless": "`model.sig` is a keyless OpenSSF signature over all files, in Sigstore's public log: "
    "`un2clip verify FOLDER --identity WHO --issuer ADDRESS`.",
    "no": "It is not signed: the files vouch for each other (`un2clip verify FOLDER`), and nobody for all of them.",
}


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that a card says.

    Attributes:
        name: title, and what the loading lines name.
        custody: record of the folder, before its files are known.
        report: of the evidence.
        verdict: the gate's page, in Markdown; "" where it was not kept.
        subfolder: where those for transformers lie; "" for beside the others.
        hugging_face: why there are no files for transformers; "" where there are.
        licence: of the weights, an id of the hub's.
        data_licence: of the training data, in words.
        croissant: whether the training data's metadata are there.
        evaluated: benchmarks that have a file in `.eval_results`.
    """

    name: str
    custody: Custody
    report: Report
    verdict: str
    subfolder: str
    hugging_face: str
    licence: str
    data_licence: str
    croissant: bool
    evaluated: Sequence[str]


def card(made: Contents) -> str:
    """The page, with the head that the hub reads; the same contents give the same text."""
    data = ModelCardData(
        license=made.licence,
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "un2clip", *([] if made.hugging_face else ["transformers"])],
    )
    parts = [_what(made), _loading(made), _results(made), _gate(made), _data(made), _method(made), _limits(made)]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"
    ModelCard(text)  # its head can be read again
    return text


def _what(made: Contents) -> str:
    lineage, custody = made.report.lineage, made.custody
    return f"""# {_plain(made.name)}

A CLIP whose image encoder was fine-tuned to carry more visual detail, by row `{lineage.method}` of
[un²CLIP](https://arxiv.org/abs/2505.24517)'s methods: a generator draws an image from the encoder's embedding, and the
encoder trains until the generator's loss falls. The text tower is byte for byte that of the CLIP it was made from, so
text embeddings that are kept stay good. Version {custody.version} of `{_plain(custody.model)}`, encoder
`{custody.encoder_sha256[:12]}`."""


def _loading(made: Contents) -> str:
    transformers = f"It has no files for transformers: {_plain(made.hugging_face)}"
    if not made.hugging_face:
        place = f'"FOLDER", subfolder="{made.subfolder}"' if made.subfolder else '"FOLDER"'
        transformers = f"""```python
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained({place}), AutoProcessor.from_pretrained({place})
```"""
    return f"""## How to load it

`FOLDER` is where these files lie. Of a repository of the hub open_clip takes `hf-hub:ORG/NAME`, and transformers
`ORG/NAME`.

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```

{transformers}

```sh
un2clip embed IMAGES_OR_TARS --from FOLDER --to embeddings.parquet
```"""


def _results(made: Contents) -> str:
    head = ("benchmark", "n", "before", "after", "change", f"{100 * made.report.confidence:g} % interval")
    rows = [_row(each) for each in made.report.benchmarks]
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    said = (
        "Before is the untouched CLIP. An interval that holds 0 shows nothing. A benchmark is what its data are, which "
    )
    said += f"the hashes below say and its name does not. Every outcome is in `{EVIDENCE}/scores`."
    evals = f" `{EVALS}` has those of {', '.join(map(_plain, made.evaluated))} for the hub." if made.evaluated else ""
    return "\n".join(["## What was measured", "", *lines, "", f"{said}{evals}"])


def _row(each: Comparison) -> tuple[str, ...]:
    whole, unit = each.whole, each.unit
    return (
        f"{_plain(each.benchmark)} ({unit})",
        f"{whole.difference.n} {get_unit(unit).counts}",
        number(whole.reference, unit),
        number(whole.tuned, unit),
        number(whole.difference.mean, unit, signed=True),
        interval(whole.difference, unit),
    )


def _gate(made: Contents) -> str:
    return (
        f"## The gate\n\n{made.verdict or 'Its decision was not kept with this version: promote it again to have it.'}"
    )


def _data(made: Contents) -> str:
    parents = [f"* {_plain(name)}: `{sha256}`" for name, sha256 in made.report.lineage.parents.items()]
    benchmarks = [
        f"* {_plain(each.benchmark)}: `{each.data_sha256}`, measured as: {_plain(each.protocol) or 'nothing said'}"
        for each in made.report.benchmarks
    ]
    described = f"`{CROISSANT}` lists every file with its hash." if made.croissant else "Its files are not listed here."
    return "\n".join([
        "## Data", "",
        f"Training data: licence {_plain(made.data_licence)}. {described} What the encoder was made from, by hash:", "",
        *parents, "", "Benchmarks, by the hash of their data:", "", *benchmarks,
    ])  # fmt: skip


def _method(made: Contents) -> str:
    lineage, trained_s = made.report.lineage, made.custody.trained_s
    batch = lineage.params.get("batch_size")
    cost = f"{trained_s:.0f} s of fine-tuning" if trained_s is not None else "how long it took is not known here"
    seen = f", batches of {batch} images" if isinstance(batch, int) else ""
    commit = f"commit `{made.custody.source_commit}`" if made.custody.source_commit else "a checkout that is not known"
    return f"""## Method and cost

Row `{lineage.method}`, seed {lineage.seed}, {lineage.steps_done} steps{seen}: {cost}, for the encoder alone; the
generator came ready. `lineage.json` has every number. It was judged and registered by the code of {commit}, and
published by un2clip {__version__}."""


def _limits(made: Contents) -> str:
    tail = [
        "One training with one seed: the intervals are over the samples, and say nothing of another seed.",
        "What no benchmark above samples was not measured, bias and safety among it.",
        _SIGNED[made.custody.signed],
    ]
    if made.licence == "other":
        tail.insert(0, "Nobody has stated a licence of these weights; that of the CLIP they were made from binds.")
    return "\n".join(["## Limits", "", *(f"* {sentence}" for sentence in tail)])


def _plain(text: Any) -> str:
    """Another's text in Markdown: no tag, no column, no line of its own."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")


def sentences(without: Iterable[str], made: Contents) -> list[str]:
    """What a folder lacks, and what to do about it, for the one who made it."""
    said = []
    if made.hugging_face:
        said.append(f"no files for transformers: {made.hugging_face}")
    if names := ", ".join(without):
        said.append(f"no results in the hub's format for {names}: --dataset says which set of the hub the data are")
    if not made.croissant:
        said.append("no metadata of the training data: --shards must be its folder, and mlcroissant be installed")
    if made.custody.signed == "no":
        said.append("no signature: --sign-key=FILE or --sign-keyless makes one")
    return said

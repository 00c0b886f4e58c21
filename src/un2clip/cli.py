"""The commands beside the stages: each is a parser and a function of the parsed arguments.

What they import, they import when they run, so that `--help` stays quick.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import yaml

from un2clip.config import build, flags, merge, read_files, read_params, read_yaml, stack, unite
from un2clip.errors import UserError

Args = argparse.Namespace
Commands = Any  # argparse keeps the class of add_subparsers' result to itself


#: The numbers; the other files of them lie beside it.
PARAMS = Path("params.yaml")
#: Commands that had another name -> their name now.
RENAMED = {"encoder": "convert"}


def add_commands(commands: Commands) -> None:
    """Add every command to the parser; each sets `run`, a function of its arguments."""
    for add in (
        _doctor,
        _convert,
        _pin,
        _flags,
        _fetch,
        _download,
        _calibrate,
        _pair,
        _ask,
        _study,
        _aggregate,
        _export,
        _embed,
        _rollback,
        _show,
    ):
        add(commands)


def _doctor(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="what this machine has and lacks; status 1 if something needed failed")
    parser.add_argument("--quick", action="store_true", help="without asking torch; for a container's health check")
    parser.add_argument("--json", action="store_true", help="a list of {name, state, message, fix}")

    def run(args: Args) -> None:
        from un2clip.doctor import examine, healthy

        checks = list(examine(torch=not args.quick))
        print(json.dumps([vars(check) for check in checks]) if args.json else "\n".join(map(str, checks)))
        if not healthy(checks):
            raise SystemExit(1)

    parser.set_defaults(run=run)


def _convert(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="published weights to an open_clip folder")
    parser.add_argument("--to", required=True, type=Path, help="folder to write")
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")
    parser.add_argument("--from", dest="weights", help="file, folder, hub id or models:/name/version")
    for key in ("architecture", "revision", "visual"):
        parser.add_argument(f"--{key}", help=f"instead of backbones.encoder.{key} of params.yaml")

    def run(args: Args) -> None:
        from un2clip.models.converting import Encoder, convert_checkpoint

        params = read_params(PARAMS, args.overlay)
        given = {key: value for key, value in vars(args).items() if key in params["backbones"]["encoder"] and value}
        encoder = build(Encoder, params["backbones"]["encoder"] | given, "encoder")
        if encoder.weights == "toy":
            raise UserError("say whose weights: --from=PLACE, or --overlay=FILE of configs/")
        clip = convert_checkpoint(encoder, args.to, "encoder")
        loads = f"open_clip.create_model_and_transforms('local-dir:{args.to}')"
        print(f"{args.to}: embeddings of {clip.embed_dim}; {loads}")

    parser.set_defaults(run=run)


def _pin(commands: Commands) -> None:
    parser = commands.add_parser("pin", help="commit and hashes of a hub id, to be written into an overlay")
    parser.add_argument("location", metavar="ORG/NAME")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument("--kind", choices=["model", "dataset"], default="model")
    parser.add_argument("--section", default="backbones.encoder", help="of params.yaml, to print an overlay for")
    parser.add_argument("--files", nargs="+", default=[], metavar="PATTERN", help="default: all that may be opened")

    def run(args: Args) -> None:
        from un2clip.sources.hub import pin

        source = pin(args.location, args.revision, args.kind, args.files)
        overlay: dict[str, Any] = {"revision": source.revision, "sha256": source.sha256}
        for key in reversed(args.section.split(".")):
            overlay = {key: overlay}
        print(f"# {source.location}, as it is served now: compare it with what you trust")
        print(yaml.safe_dump(overlay, sort_keys=False), end="")

    parser.set_defaults(run=run)


def _flags(commands: Commands) -> None:
    parser = commands.add_parser("flags", help="overlays as arguments: un2clip flags FILE | xargs -r dvc exp run")
    parser.add_argument("overlay", type=Path, nargs="+")

    def run(args: Args) -> None:
        files, stacked = read_files(PARAMS), stack(map(read_yaml, args.overlay))
        merge(unite(files), stacked)  # refuses what none of the files has
        print(shlex.join(flags(stacked, files)))

    parser.set_defaults(run=run)


def _fetch(commands: Commands) -> None:
    parser = commands.add_parser("fetch", help="a benchmark's data, licence first; without a NAME the list")
    parser.add_argument("name", nargs="?")
    parser.add_argument("--to", type=Path, help="the data set's folder (default: data/NAME)")
    parser.add_argument("--from", dest="given", type=Path, help="a folder that has it, instead of the hub")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only check a folder's layout and counts")
    parser.add_argument("--revision", default="", help="commit or branch of a hub id, other than ours")

    def run(args: Args) -> None:
        from un2clip.sources import catalogue
        from un2clip.sources.benchmarks import fetch

        if args.name is None:
            print(catalogue.table(), end="")
        elif args.check is not None:
            print(catalogue.check(catalogue.get_entry(args.name), args.check))
        else:
            to = args.to or Path("data") / args.name
            fetch(args.name, to=to, given=args.given, revision=args.revision)

    parser.set_defaults(run=run)


def _download(commands: Commands) -> None:
    parser = commands.add_parser("download", help="images of caption-url lists (CC3M's tsv, csv, parquet), as tars")
    parser.add_argument("lists", type=Path, nargs="*", metavar="LIST", help="none: only make --environment")
    parser.add_argument("--to", type=Path, help="folder for the tars (default: data/NAME of the first list)")
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")
    parser.add_argument("--caption-column", default="caption", metavar="NAME", help="of csv and parquet")
    parser.add_argument("--url-column", default="url", metavar="NAME", help="of csv and parquet")
    parser.add_argument("--retry", action="store_true", help="try again what failed and may have passed")
    parser.add_argument(
        "--environment", type=Path, default=Path(".venv-download"), help="img2dataset's own (default: .venv-download)"
    )

    def run(args: Args) -> None:
        from un2clip.sources.download import Download, download
        from un2clip.sources.download.environment import interpreter

        if not args.lists:
            print(f"download: img2dataset is run by {interpreter(args.environment)}")
            return
        params = read_params(PARAMS, args.overlay)
        download(
            build(Download, params["download"], "download"),
            args.lists,
            to=args.to or Path("data") / args.lists[0].stem,
            environment=args.environment,
            caption_column=args.caption_column,
            url_column=args.url_column,
            retry=args.retry,
        )

    parser.set_defaults(run=run)


def _calibrate(commands: Commands) -> None:
    parser = commands.add_parser("calibrate", help="does a released model reach its published numbers?")
    parser.add_argument("model", help="such as openai-vit-l-14-224; another word lists them")
    data = "MMVP-VLM's pairs, or a folder zeroshot-NAME or retrieval-NAME; the record is written beside it"
    parser.add_argument("--data", required=True, type=Path, help=data)
    parser.add_argument("--clip", required=True, type=Path, help="the model as released, made by `un2clip convert`")

    def run(args: Args) -> None:
        from un2clip.evaluation.calibrate import calibrate, published
        from un2clip.evaluation.measuring import Evaluate
        from un2clip.evaluation.second_ruler import get_ruler, hold

        params = read_params(PARAMS)
        evaluate, common = build(Evaluate, params["evaluate"], "evaluate"), {"data": args.data, "clip": args.clip}
        if args.data.name.startswith(("zeroshot", "retrieval")):
            hold(get_ruler(args.model, args.data.name), device=params["device"], params=evaluate, **common)
        else:
            size = evaluate.batch_size
            calibrate(published(args.model), device=params["device"], batch_size=size, **common)

    parser.set_defaults(run=run)


def _pair(commands: Commands) -> None:
    parser = commands.add_parser("pair", help="a CLIP and the unCLIP that inverts it, trained for the laptop world")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--to", required=True, type=Path, help="folder that gets clip/, unclip/ and README.md")
    parser.add_argument("--work", type=Path, default=Path("models/pair"), help="its world and state, to go on from")
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")

    def run(args: Args) -> None:
        from un2clip.study.pair import make_pair

        make_pair(read_params(PARAMS, args.overlay), seed=args.seed, to=args.to, work=args.work)

    parser.set_defaults(run=run)


def _ask(commands: Commands) -> None:
    parser = commands.add_parser("ask", help="a LLaVA's answers to an MLLM benchmark, and their score")
    parser.add_argument("--assistant", required=True, type=Path, help="folder of a LLaVA as transformers saves it")
    parser.add_argument("--benchmark", required=True, help="such as pope; docs/mllm.md lists them")
    parser.add_argument("--data", type=Path, help="the benchmark's folder (default: data/BENCHMARK)")
    parser.add_argument("--to", type=Path, help="folder of scores and answers (default: scores/BENCHMARK)")
    parser.add_argument("--role", choices=["reference", "tuned"], default="reference", help="(default: reference)")
    parser.add_argument("--method", help="that made a tuned one's encoder (default: the assistant folder's name)")
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")

    def run(args: Args) -> None:
        from un2clip.evaluation.mllm.asking import ask

        ask(
            read_params(PARAMS, args.overlay),
            assistant=args.assistant,
            benchmark=args.benchmark,
            data=args.data or Path("data") / args.benchmark,
            to=args.to or Path("scores") / args.benchmark,
            role=args.role,
            method="reference" if args.role == "reference" else args.method or args.assistant.resolve().name,
        )

    parser.set_defaults(run=run)


def _study(commands: Commands) -> None:
    parser = commands.add_parser("study", help="all methods over several seeds: one table with its spread")
    parser.add_argument("--to", type=Path, default=Path("study"))
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of study.seeds of params.yaml")
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")

    def run(args: Args) -> None:
        from un2clip.study.run import study

        params = read_params(PARAMS, args.overlay)
        if args.seeds:
            params["study"]["seeds"] = args.seeds
        study(params, args.to)

    parser.set_defaults(run=run)


def _aggregate(commands: Commands) -> None:
    parser = commands.add_parser("aggregate", help="reports of one method's seeds, made separately: the same table")
    parser.add_argument("reports", type=Path, nargs="+", help="report.json, or the folder it lies in, of each seed")

    def run(args: Args) -> None:
        from un2clip.study.seeds import aggregate

        print(aggregate(args.reports), end="")

    parser.set_defaults(run=run)


def _export(commands: Commands) -> None:
    parser = commands.add_parser("export", help="get an encoder as open_clip, OpenAI or Hugging Face load it")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--alias", default="champion", help="champion, challenger, ... (default: champion)")
    place.add_argument("--from", dest="folder", type=Path, help="an open_clip folder instead of a registered model")
    parser.add_argument("--format", choices=["open_clip", "openai", "hf"], default="open_clip")
    parser.add_argument("--to", required=True, type=Path, help="new or empty folder")
    parser.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")

    def run(args: Args) -> None:
        if args.folder:
            from un2clip.models.exporting import write_export

            print(f"{args.to}: {write_export(args.folder, args.to, args.format)}")
        else:
            from un2clip.models.registry import export

            model = args.model or read_params(PARAMS)["promote"]["registered_model"]
            export(args.alias, args.to, model, args.format)

    parser.set_defaults(run=run)


def _embed(commands: Commands) -> None:
    parser = commands.add_parser("embed", help="embeddings of images, as one Parquet file; goes on after a kill")
    parser.add_argument("sources", type=Path, nargs="+", metavar="IMAGES_OR_TARS", help="images, tars, folders of both")
    parser.add_argument("--to", required=True, type=Path, help="new Parquet file: source, key, embedding, error")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--alias", default="champion", help="champion, challenger, ... (default: champion)")
    place.add_argument("--from", dest="folder", type=Path, help="an open_clip folder instead of a registered model")
    parser.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")
    parser.add_argument("--raw", action="store_true", help="as the encoder gives them; otherwise of length 1")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default: 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")

    def run(args: Args) -> None:
        from un2clip.models.embedding import embed_with

        model = args.model or ("" if args.folder else read_params(PARAMS)["promote"]["registered_model"])
        embed_with(
            args.folder or f"models:/{model}@{args.alias}",
            args.sources,
            args.to,
            normalize=not args.raw,
            batch_size=args.batch_size,
            device=args.device,
        )

    parser.set_defaults(run=run)


def _rollback(commands: Commands) -> None:
    parser = commands.add_parser("rollback", help="the alias champion goes back to the version before")
    parser.add_argument("--reason", required=True, help="in a line; it is kept on the version that was champion")
    parser.add_argument("--to", default="", metavar="NUMBER", help="a version other than the one that it had to beat")
    parser.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")

    def run(args: Args) -> None:
        from un2clip.models.rollback import rollback

        rollback(args.model or read_params(PARAMS)["promote"]["registered_model"], args.reason, args.to)

    parser.set_defaults(run=run)


def _show(commands: Commands) -> None:
    parser = commands.add_parser("show", help="table, decision and paths of the finished `dvc repro`")

    def run(args: Args) -> None:
        from un2clip.evidence.summary import show

        reports = Path("reports")
        show(
            report=reports / "report",
            decision=reports / "decision",
            reconstructions=reports / "reconstructions",
            scores=Path("scores"),
            encoder=Path("models/encoder"),
        )

    parser.set_defaults(run=run)

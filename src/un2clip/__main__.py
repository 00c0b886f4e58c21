"""The command line: `un2clip STAGE --name=path ...`, and a few words for people.

It takes stage names and paths only; numbers come from params.yaml. The flags of a stage are the names of
its function.
"""

import argparse
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml

from un2clip.config import UserError, build, flags, merge, read_yaml, stack
from un2clip.stages import STAGES, get_stage, run_stage


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit status 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    words = sys.argv[1:] if argv is None else argv
    try:
        return _run(words)
    except UserError as error:
        print(f"un2clip: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("un2clip: interrupted; finished stages are kept", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if words and words[0] in STAGES:
        return _stage(words[0], words[1:])
    parser = argparse.ArgumentParser(prog="un2clip", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in STAGES:
        commands.add_parser(name, add_help=False, help=f"stage; `un2clip {name} --help` lists its names")
    export = commands.add_parser("export", help="get an encoder as open_clip, OpenAI or Hugging Face load it")
    place = export.add_mutually_exclusive_group()
    place.add_argument("--alias", default="champion", help="champion, challenger, ... (default: champion)")
    place.add_argument("--from", dest="folder", type=Path, help="an open_clip folder instead of a registered model")
    export.add_argument("--format", choices=["open_clip", "openai", "hf"], default="open_clip")
    export.add_argument("--to", required=True, type=Path, help="new or empty folder")
    export.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")
    encoder = commands.add_parser("encoder", help="make an open_clip folder from weights as they were published")
    encoder.add_argument("--to", required=True, type=Path, help="folder to write")
    encoder.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")
    encoder.add_argument("--from", dest="weights", help="file, folder, hub id or models:/name/version")
    for key in ("architecture", "revision", "visual"):
        encoder.add_argument(f"--{key}", help=f"instead of backbones.encoder.{key} of params.yaml")
    pins = commands.add_parser("pin", help="commit and hashes of a hub id, to be written into an overlay")
    pins.add_argument("location", metavar="ORG/NAME")
    pins.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    pins.add_argument("--kind", choices=["model", "dataset"], default="model")
    pins.add_argument("--section", default="backbones.encoder", help="of params.yaml, to print an overlay for")
    pins.add_argument("--files", nargs="+", default=[], metavar="PATTERN", help="default: all that may be opened")
    words_of = commands.add_parser("flags", help="overlays as words for `dvc exp run`; the later wins")
    words_of.add_argument("overlay", type=Path, nargs="+")
    study = commands.add_parser("study", help="all methods over several seeds: one table with its spread")
    study.add_argument("--to", type=Path, default=Path("study"))
    study.add_argument("--seeds", type=int, nargs="+", help="instead of study.seeds of params.yaml")
    aggregate = commands.add_parser("aggregate", help="reports of one method's seeds, made separately: the same table")
    aggregate.add_argument("reports", type=Path, nargs="+", help="report.json, or the folder it lies in, of each seed")
    fetch = commands.add_parser("fetch", help="a benchmark's data: licence first, then the download; no NAME: the list")
    fetch.add_argument("name", nargs="?")
    fetch.add_argument("--to", type=Path, help="the data set's folder (default: data/NAME)")
    fetch.add_argument("--from", dest="given", type=Path, help="a folder that has it, instead of the hub")
    fetch.add_argument("--check", type=Path, metavar="FOLDER", help="only check a folder's layout and counts")
    fetch.add_argument("--revision", default="", help="commit of a hub id, where we know none")
    calibrated = commands.add_parser("calibrate", help="does a released model reach its published MMVP-VLM counts?")
    calibrated.add_argument("model", help="name in mmvp_vlm.yaml of the package; another word lists them")
    calibrated.add_argument("--data", required=True, type=Path, help="the pairs; the record is written beside them")
    calibrated.add_argument("--clip", required=True, type=Path, help="the model as released, made by `un2clip encoder`")
    commands.add_parser("show", help="table, decision and paths of the finished `dvc repro`")
    options = parser.parse_args(words or ["--help"])

    params = read_yaml(Path("params.yaml"))
    match options.command:
        case "export":
            if options.folder:
                from un2clip.exports import write_export

                print(f"{options.to}: {write_export(options.folder, options.to, options.format)}")
            else:
                from un2clip.registry import export as export_version

                model = options.model or params["promote"]["registered_model"]
                export_version(options.alias, options.to, model, options.format)
        case "encoder":
            _encoder(params, options)
        case "pin":
            from un2clip.sources import pin

            source = pin(options.location, options.revision, options.kind, options.files)
            overlay: dict[str, Any] = {"revision": source.revision, "sha256": source.sha256}
            for key in reversed(options.section.split(".")):
                overlay = {key: overlay}
            print(f"# {source.location}, as it is served now: compare it with what you trust")
            print(yaml.safe_dump(overlay, sort_keys=False), end="")
        case "flags":
            stacked = stack(read_yaml(path) for path in options.overlay)
            merge(params, stacked)  # refuses what params.yaml does not have
            print(" ".join(flags(stacked)))
        case "study":
            from un2clip.study import study as run_study

            if options.seeds:
                params["study"]["seeds"] = options.seeds
            run_study(params, options.to)
        case "aggregate":
            from un2clip.seeds import aggregate as aggregate_reports

            print(aggregate_reports(options.reports), end="")
        case "fetch":
            _fetch(options)
        case "calibrate":
            from un2clip.benchmarks import Options
            from un2clip.calibrate import calibrate, published

            calibrate(
                published(options.model),
                data=options.data,
                clip=options.clip,
                device=params["device"],
                options=build(Options, params["evaluate"], "evaluate"),
            )
        case "show":
            from un2clip.show import show

            reports = Path("reports")
            show(
                report=reports / "report",
                decision=reports / "decision",
                reconstructions=reports / "reconstructions",
                scores=Path("scores"),
                encoder=Path("models/encoder"),
            )
    return 0


def _fetch(options: argparse.Namespace) -> None:
    from un2clip import catalogue
    from un2clip.fetch import fetch

    if options.name is None:
        print(catalogue.table(), end="")
    elif options.check is not None:
        print(catalogue.check(catalogue.get_entry(options.name), options.check))
    else:
        to = options.to or Path("data") / options.name
        fetch(options.name, to=to, given=options.given, revision=options.revision)


def _encoder(params: dict[str, Any], options: argparse.Namespace) -> None:
    from un2clip.encoder import Encoder, import_clip

    params = merge(params, stack(read_yaml(path) for path in options.overlay))
    given = {key: value for key, value in vars(options).items() if key in params["backbones"]["encoder"] and value}
    encoder = build(Encoder, params["backbones"]["encoder"] | given, "encoder")
    if encoder.weights == "toy":
        raise UserError("say whose weights: --from=PLACE, or --overlay=FILE of configs/")
    clip = import_clip(encoder, options.to, "encoder")
    print(
        f"{options.to}: embeddings of {clip.embed_dim}; open_clip.create_model_and_transforms('local-dir:{options.to}')"
    )


def _stage(name: str, words: list[str]) -> int:
    stage = get_stage(name)
    parser = argparse.ArgumentParser(
        prog=f"un2clip {name}", description=inspect.getdoc(stage), formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the numbers (default: params.yaml)")
    parser.add_argument(
        "--overlay", type=Path, action="append", help="a file of configs/, laid over them; may be repeated"
    )
    for key, parameter in inspect.signature(stage).parameters.items():
        if key != "params":
            several = "append" if parameter.annotation == list[Path] else "store"
            parser.add_argument(f"--{key}", required=True, action=several)
    given = vars(parser.parse_args(words))
    params = merge(read_yaml(given.pop("params")), stack(read_yaml(path) for path in given.pop("overlay") or []))
    if name not in params:
        raise UserError(f"params.yaml has no section {name}")
    if "seed" in given:
        given["seed"] = _integer(given["seed"])
    run_stage(name, params[name], **given)
    return 0


def _integer(text: str) -> int:
    if not text.lstrip("-").isdecimal():
        raise UserError(f"--seed must be an integer, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `un2clip STAGE --name=path ...`, and a few words for people.

It takes stage names and paths only; numbers come from params.yaml. The flags of a stage are the names of
its function.
"""

import argparse
import inspect
import sys
import warnings
from pathlib import Path

from un2clip.config import UserError, flags, merge, read_yaml
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
    export = commands.add_parser("export", help="get a registered encoder back as an open_clip folder")
    export.add_argument("--alias", default="champion", help="champion, challenger, ... (default: champion)")
    export.add_argument("--to", required=True, type=Path, help="new or empty folder")
    export.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")
    overlay = commands.add_parser("flags", help="an overlay as words for `dvc exp run`")
    overlay.add_argument("overlay", type=Path)
    study = commands.add_parser("study", help="all methods over several seeds: one table with its spread")
    study.add_argument("--to", type=Path, default=Path("study"))
    study.add_argument("--seeds", type=int, nargs="+", help="instead of study.seeds of params.yaml")
    aggregate = commands.add_parser("aggregate", help="reports of one method's seeds, made separately: the same table")
    aggregate.add_argument("reports", type=Path, nargs="+", help="report.json, or the folder it lies in, of each seed")
    commands.add_parser("show", help="table, decision and paths of the finished `dvc repro`")
    options = parser.parse_args(words or ["--help"])

    params = read_yaml(Path("params.yaml"))
    match options.command:
        case "export":
            from un2clip.registry import export as export_version

            export_version(options.alias, options.to, options.model or params["promote"]["registered_model"])
        case "flags":
            merge(params, read_yaml(options.overlay))  # refuses what params.yaml does not have
            print(" ".join(flags(read_yaml(options.overlay))))
        case "study":
            from un2clip.study import study as run_study

            if options.seeds:
                params["study"]["seeds"] = options.seeds
            run_study(params, options.to)
        case "aggregate":
            from un2clip.seeds import aggregate as aggregate_reports

            print(aggregate_reports(options.reports), end="")
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


def _stage(name: str, words: list[str]) -> int:
    stage = get_stage(name)
    parser = argparse.ArgumentParser(
        prog=f"un2clip {name}", description=inspect.getdoc(stage), formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the numbers (default: params.yaml)")
    parser.add_argument("--overlay", type=Path, help="a file of configs/, laid over them")
    for key, parameter in inspect.signature(stage).parameters.items():
        if key != "params":
            several = "append" if parameter.annotation == list[Path] else "store"
            parser.add_argument(f"--{key}", required=True, action=several)
    given = vars(parser.parse_args(words))
    params = read_yaml(given.pop("params"))
    if (overlay := given.pop("overlay")) is not None:
        params = merge(params, read_yaml(overlay))
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

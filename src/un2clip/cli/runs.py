"""Commands on runs: before, between and after them."""

import json
import shlex
from pathlib import Path

from un2clip.cli.words import PARAMS, Args, Commands, add_overlay
from un2clip.config import flags, merge, read_files, read_params, read_yaml, stack, unite


def add_doctor(commands: Commands) -> None:
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


def add_init(commands: Commands) -> None:
    parser = commands.add_parser("init", help="write the numbers, the graph and the overlays into a folder to work in")
    parser.add_argument("folder", type=Path, metavar="DIR")

    def run(args: Args) -> None:
        from un2clip.config.project import make_project

        print(f"{args.folder} has {', '.join(make_project(args.folder))}. Next, with the environment's bin on PATH:\n")
        print(f"    cd {shlex.quote(str(args.folder))}\n    un2clip doctor\n    dvc repro && un2clip show")
        print("\nNo dvc? pip install 'un2clip[pipelines]'")

    parser.set_defaults(run=run)


def add_flags(commands: Commands) -> None:
    parser = commands.add_parser("flags", help="overlays as arguments: un2clip flags FILE | xargs -r dvc exp run")
    parser.add_argument("overlay", type=Path, nargs="+")

    def run(args: Args) -> None:
        files, stacked = read_files(PARAMS), stack(map(read_yaml, args.overlay))
        merge(unite(files), stacked)  # refuses what none of the files has
        print(shlex.join(flags(stacked, files)))

    parser.set_defaults(run=run)


def add_plan(commands: Commands) -> None:
    parser = commands.add_parser("plan", help="hours, memory, disk and cost of a fine-tuning, before anyone pays")
    add_overlay(parser)
    parser.add_argument("--gpu", default="h100", help="of src/un2clip/planning/machines.yaml (default: h100)")
    parser.add_argument("--gpus", type=int, default=1, help="of one machine (default: 1)")
    parser.add_argument("--price", type=float, help="of a GPU and hour, in any currency")
    parser.add_argument("--images", type=int, default=0, help="in the corpus (default: one epoch of the longest phase)")

    def run(args: Args) -> None:
        from un2clip.planning.machines import get_device
        from un2clip.planning.plan import Plan, describe

        device, params = get_device(args.gpu), read_params(PARAMS, args.overlay)
        print(describe(Plan(params, args.images), device, args.gpus, args.price))

    parser.set_defaults(run=run)


def add_pair(commands: Commands) -> None:
    parser = commands.add_parser("pair", help="a CLIP and the unCLIP that inverts it, trained for the laptop world")
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--to", required=True, type=Path, help="folder that gets clip/, unclip/ and README.md")
    parser.add_argument("--work", type=Path, default=Path("models/pair"), help="its world and state, to go on from")
    add_overlay(parser)

    def run(args: Args) -> None:
        from un2clip.study.pair import make_pair

        make_pair(read_params(PARAMS, args.overlay), seed=args.seed, to=args.to, work=args.work)

    parser.set_defaults(run=run)


def add_study(commands: Commands) -> None:
    parser = commands.add_parser("study", help="all methods over several seeds: one table with its spread")
    parser.add_argument("--to", type=Path, default=Path("study"), help="folder of the results; runs in it are kept")
    parser.add_argument(
        "--work", type=Path, default=Path("models/study"), help="its worlds and encoders, to go on from"
    )
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of study.seeds of params.yaml")
    add_overlay(parser)

    def run(args: Args) -> None:
        from un2clip.study.run import study

        params = read_params(PARAMS, args.overlay)
        if args.seeds:
            params["study"]["seeds"] = args.seeds
        study(params, args.to, args.work)

    parser.set_defaults(run=run)


def add_controls(commands: Commands) -> None:
    parser = commands.add_parser(
        "controls", help="can language models' answers tell encoders apart? blind, random, labels"
    )
    parser.add_argument("--to", type=Path, default=Path("study/controls"), help="all that is made, to go on from")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="of the language models")
    add_overlay(parser)

    def run(args: Args) -> None:
        from un2clip.evidence.assistants import print_assistants
        from un2clip.study.assistants import controls, verdict

        params = read_params(PARAMS, args.overlay)
        for name, found in controls(params, to=args.to, seeds=args.seeds).items():
            print(f"{name}, in the column of the tuned encoder, against the reference")
            print_assistants(found, confidence=params["compare"]["confidence"])
            print(verdict(name, found))

    parser.set_defaults(run=run)


def add_aggregate(commands: Commands) -> None:
    parser = commands.add_parser("aggregate", help="reports of one method's seeds, made separately: the same table")
    parser.add_argument("reports", type=Path, nargs="+", help="report.json, or the folder it lies in, of each seed")

    def run(args: Args) -> None:
        from un2clip.study.seeds import aggregate

        print(aggregate(args.reports), end="")

    parser.set_defaults(run=run)


def add_show(commands: Commands) -> None:
    parser = commands.add_parser("show", help="table, decision and paths of the finished `dvc repro`")
    parser.add_argument("--types", action="store_true", help="a row for each type of each benchmark too")

    def run(args: Args) -> None:
        from un2clip.evaluation.standing import standings
        from un2clip.evidence.report import read_report
        from un2clip.evidence.summary import show

        reports = Path("reports")
        show(
            report=reports / "report",
            decision=reports / "decision",
            reconstructions=reports / "reconstructions",
            scores=Path("scores"),
            encoder=Path("models/encoder"),
            types=args.types,
        )
        data = Path(read_params(PARAMS)["benchmark_data"]) if PARAMS.is_file() else Path("data")
        for sentence in standings(read_report(reports / "report/report.json").benchmarks, data):
            print(sentence)

    parser.set_defaults(run=run)


def add_explain(commands: Commands) -> None:
    parser = commands.add_parser("explain", help="what a number means, its source, and who reads it")
    parser.add_argument(
        "key", help="its name in full, such as finetune.batch_size; promote.rules also says what they show"
    )
    add_overlay(parser)

    def run(args: Args) -> None:
        from un2clip.cli.explaining import explain

        print(explain(args.key, PARAMS, args.overlay))

    parser.set_defaults(run=run)

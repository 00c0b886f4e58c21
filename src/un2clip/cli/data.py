"""Commands on data, and on models that are measured with data."""

from pathlib import Path

from un2clip.cli.words import PARAMS, Args, Commands, add_overlay
from un2clip.config import build, read_params


def add_fetch(commands: Commands) -> None:
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


def add_download(commands: Commands) -> None:
    parser = commands.add_parser("download", help="images of caption-url lists (CC3M's tsv, csv, parquet), as tars")
    parser.add_argument("lists", type=Path, nargs="*", metavar="LIST", help="none: only make --environment")
    parser.add_argument("--to", type=Path, help="folder for the tars (default: data/NAME of the first list)")
    add_overlay(parser)
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


def add_edits(commands: Commands) -> None:
    parser = commands.add_parser("edits", help="photographs with masks -> pairs that differ in one thing, for `detail`")
    parser.add_argument("data", type=Path, help="a folder as the benchmark segmentation reads it")
    parser.add_argument("--to", type=Path, default=Path("data/detail/edits"), help="(default: data/detail/edits)")

    def run(args: Args) -> None:
        from un2clip.evaluation.edits import make_edits

        print(make_edits(args.data, args.to))

    parser.set_defaults(run=run)


def add_calibrate(commands: Commands) -> None:
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


def add_draws(commands: Commands) -> None:
    parser = commands.add_parser("draws", help="MMVP-VLM as DIVA's code scores it, over several draws")
    parser.add_argument("protocol", help="such as diva-openai; another word lists them")
    parser.add_argument("--data", required=True, type=Path, help="MMVP-VLM's pairs")
    parser.add_argument("--clip", required=True, type=Path, action="append", help="the reference, then others")
    parser.add_argument("--draws", type=int, default=0, help="(default: as many as are needed)")

    def run(args: Args) -> None:
        from un2clip.evaluation.draws import drawn_scores
        from un2clip.evaluation.measuring import Evaluate

        params = read_params(PARAMS)
        size = build(Evaluate, params["evaluate"], "evaluate").batch_size
        given = {"data": args.data, "clips": args.clip, "draws": args.draws}
        drawn_scores(args.protocol, device=params["device"], batch_size=size, **given)

    parser.set_defaults(run=run)


def add_ask(commands: Commands) -> None:
    parser = commands.add_parser("ask", help="a LLaVA's answers to an MLLM benchmark, and their score")
    parser.add_argument("--assistant", required=True, type=Path, help="folder of a LLaVA as transformers saves it")
    parser.add_argument("--benchmark", required=True, help="such as pope; docs/mllm.md lists them")
    parser.add_argument("--data", type=Path, help="the benchmark's folder (default: data/BENCHMARK)")
    parser.add_argument("--to", type=Path, help="folder of scores and answers (default: scores/BENCHMARK)")
    parser.add_argument("--role", choices=["reference", "tuned"], default="reference", help="(default: reference)")
    parser.add_argument("--method", help="that made a tuned one's encoder (default: the assistant folder's name)")
    add_overlay(parser)

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

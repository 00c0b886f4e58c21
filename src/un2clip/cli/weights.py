"""Commands on weights: published ones come in, tuned ones go out."""

from pathlib import Path
from typing import Any

import yaml

from un2clip.cli.words import PARAMS, Args, Commands, add_overlay
from un2clip.config import build, read_params
from un2clip.errors import UserError


def add_convert(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="published weights to an open_clip folder")
    parser.add_argument("--to", required=True, type=Path, help="folder to write")
    add_overlay(parser)
    parser.add_argument("--from", dest="weights", help="file, folder, hub id or models:/name/version")
    for key in ("architecture", "revision", "visual"):
        parser.add_argument(f"--{key}", help=f"instead of backbones.encoder.{key} of params.yaml")

    def run(args: Args) -> None:
        from un2clip.models.converting import Encoder, convert_checkpoint

        params = read_params(PARAMS, args.overlay)
        given = {key: value for key, value in vars(args).items() if key in params["backbones"]["encoder"] and value}
        encoder = build(Encoder, params["backbones"]["encoder"] | given, "encoder")
        if encoder.weights == "toy" or not (args.weights or args.overlay):
            raise UserError("say whose weights: --from=PLACE, or --overlay=FILE of configs/")
        clip = convert_checkpoint(encoder, args.to, "encoder")
        loads = f"open_clip.create_model_and_transforms('local-dir:{args.to}')"
        print(f"{args.to}: embeddings of {clip.embed_dim}; {loads}")

    parser.set_defaults(run=run)


def add_pin(commands: Commands) -> None:
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


def add_export(commands: Commands) -> None:
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


def add_embed(commands: Commands) -> None:
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


def add_rollback(commands: Commands) -> None:
    parser = commands.add_parser("rollback", help="the alias champion goes back to the version before")
    parser.add_argument("--reason", required=True, help="in a line; it is kept on the version that was champion")
    parser.add_argument("--to", default="", metavar="NUMBER", help="a version other than the one that it had to beat")
    parser.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")

    def run(args: Args) -> None:
        from un2clip.models.rollback import rollback

        rollback(args.model or read_params(PARAMS)["promote"]["registered_model"], args.reason, args.to)

    parser.set_defaults(run=run)

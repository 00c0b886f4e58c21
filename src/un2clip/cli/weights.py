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
    parser.add_argument("--format", choices=["open_clip", "openai", "hf", "internvl"], default="open_clip")
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


def add_publish(commands: Commands) -> None:
    parser = commands.add_parser("publish", help="a registered encoder with card, evidence and signature, for the hub")
    parser.add_argument("--alias", default="champion", help="champion, challenger, ... (default: champion)")
    parser.add_argument("--to", required=True, type=Path, help="new folder; or the published one that --push sends")
    parser.add_argument("--push", default="", metavar="ORG/NAME", help="to the hub; without it nothing leaves here")
    parser.add_argument("--public", action="store_true", help="a repository that is made is for everybody")
    parser.add_argument("--shards", type=Path, default=Path("data/shards"), help="training data (default: data/shards)")
    parser.add_argument("--licence", default="other", metavar="ID", help="of the weights, as the hub calls it")
    parser.add_argument("--data-licence", default="not stated", metavar="TEXT", help="of the training data")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="BENCHMARK=ORG/SET:TASK@COMMIT", dest="datasets",
        help="which set of the hub a benchmark's data are; may be repeated",
    )  # fmt: skip
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--sign-key", type=Path, metavar="FILE", help="private key (PEM, elliptic curve) that signs")
    who.add_argument("--sign-keyless", action="store_true", help="sign by Sigstore, with a login")
    parser.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")

    def run(args: Args) -> None:
        from un2clip.models.publishing import Wishes, publish

        given = {key: value for key, value in vars(args).items() if key in Wishes.__dataclass_fields__}
        model = args.model or read_params(PARAMS)["promote"]["registered_model"]
        publish(model, args.alias, args.to, Wishes(**given))

    parser.set_defaults(run=run)


def add_verify(commands: Commands) -> None:
    parser = commands.add_parser("verify", help="walk the chain from signature to source; names the first broken link")
    parser.add_argument("place", metavar="FOLDER_OR_ALIAS", help="what `un2clip publish` wrote, or champion, ...")
    parser.add_argument("--key", type=Path, metavar="FILE", help="public key (PEM) of who must have signed")
    parser.add_argument("--identity", default="", help="who must have signed, keyless: an address")
    parser.add_argument("--issuer", default="", help="who vouches for the identity, such as an OpenID address")
    parser.add_argument("--model", help="registered model (default: promote.registered_model of params.yaml)")

    def run(args: Args) -> None:
        from un2clip.models.publishing.chain import UNCHECKED, verify
        from un2clip.models.publishing.signing import Trust

        model = args.model or ("" if Path(args.place).is_dir() else read_params(PARAMS)["promote"]["registered_model"])
        links = verify(args.place, model, Trust(key=args.key, identity=args.identity, issuer=args.issuer))
        unchecked = [link.name for link in links if link.state == UNCHECKED]
        print("Every link holds." if not unchecked else f"What was checked holds; not checked: {', '.join(unchecked)}.")

    parser.set_defaults(run=run)

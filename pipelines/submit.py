"""What bin/kfp runs: the stock command line of kfp, which also understands `kfp run submit FILE [key=value ...]`.

The stock one takes the file through -f, demands -e, calls `submit` a deprecated `create`, hands `seed=3` over
as a number even where a text is declared, and without an endpoint knocks at localhost many times. Its --watch shows
nothing until the end, and its exit status knows nothing of the run's; here pipelines/watch.py shows each task's state.
It sends any value; here pipelines/values.py looks at each first. It trusts Mozilla's certificates alone; here others,
by --ca-file, REQUESTS_CA_BUNDLE or SSL_CERT_FILE.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.values import check_secrets, read_value
from pipelines.watch import show_run

EXPERIMENT = "un2clip"
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")  # what requests and OpenSSL read; kfp's client reads neither
COMMANDS = {(group, verb) for group in ("run", "runs") for verb in ("submit", "create")}


def rewrite(args: list[str]) -> list[str]:
    """Turn `run submit FILE [key=value ...]` into `run create -e un2clip -f FILE [key=value ...]`.

    Options stay as they are, whatever their place. The stock form, with -f, keeps its words, and its values are checked
    as well. Words without a FILE, or with another command, pass unchanged.
    """
    if ("recurring-run", "create") in pairwise(args):
        _check_recurring(args[args.index("recurring-run") + 2 :])
        return args
    at = next((i for i, pair in enumerate(pairwise(args)) if pair in COMMANDS), None)
    if at is None:
        return args
    import click
    from kfp.cli.run import create

    _require_endpoint(args[:at])
    before, after = args[:at], args[at + 2 :]
    context = click.Context(create, info_name="kfp run submit")
    options, _, _ = create.make_parser(context).parse_args(list(after))
    files = [word for word in options["args"] if "=" not in word]
    named = options.get("package_file") or os.environ.get("KFP_RUN_CREATE_PACKAGE_FILE")
    if len(files) > 1 or (files and named):
        found = ", ".join([named, *files] if named else files)
        sys.exit(f"kfp: one pipeline file and key=value arguments are allowed, got {found}")
    package = files[0] if files else named
    if not package:
        return args
    if not Path(package).is_file():
        sys.exit(f"kfp: no such pipeline file: {package}; run from the repository's root, or compile it first")
    declared = _parameters(Path(package))
    try:
        values = {word: read_value(word, declared) for word in options["args"] if "=" in word}
        check_secrets(values.values(), declared)
    except ValueError as error:
        sys.exit(f"kfp: {error}")
    typed = [values.get(word, word) for word in after]
    if not files:
        return [*before, *args[at : at + 2], *typed]
    typed.remove(package)
    if "experiment_name" not in options and "KFP_RUN_CREATE_EXPERIMENT_NAME" not in os.environ:
        typed = ["-e", EXPERIMENT, *typed]
    return [*before, "run", "create", "-f", package, *typed]


def _check_recurring(words: list[str]) -> None:
    """Exit where a recurring run would be made of values that fit its pipeline's file badly.

    The stock command line sends each value as a text; the server takes it, and then every run of it fails.
    """
    import click
    from kfp.cli.recurring_run import create

    options, _, _ = create.make_parser(click.Context(create)).parse_args(list(words))
    package = options.get("pipeline_package_path") or os.environ.get("KFP_RECURRING_RUN_CREATE_PIPELINE_PACKAGE_PATH")
    if not package or not Path(package).is_file():  # a pipeline on the server, or click's own complaint
        return
    declared = _parameters(Path(package))
    try:
        values = [read_value(word, declared) for word in options["args"]]
        check_secrets(values, declared)
    except ValueError as error:
        sys.exit(f"kfp: {error}")
    typed = [key for key in (word.partition("=")[0] for word in values) if declared[key]["parameterType"] != "STRING"]
    if typed:
        sys.exit(
            f"kfp: a recurring run takes texts alone, and {typed[0]} is none; compile a file with it as its default: "
            "python -m pipelines.un2clip --params OVERLAY.yaml --to MINE.yaml"
        )


def _require_endpoint(options: list[str]) -> None:
    """Exit unless the client can find a server: named, around us, or through a kube config."""
    configs = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    if not (
        any(word.partition("=")[0] == "--endpoint" for word in options)
        or any(os.environ.get(name) for name in ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST"))
        or any(Path(config).expanduser().is_file() for config in configs)
    ):
        sys.exit(
            "kfp: no Kubeflow Pipelines endpoint; set KFP_ENDPOINT, for example KFP_ENDPOINT=http://localhost:8080"
        )


def _parameters(package: Path) -> dict[str, dict[str, Any]]:
    """The pipeline's parameters, from the first document of the compiled YAML."""
    import yaml

    try:
        spec = next(yaml.safe_load_all(package.read_text()))
        parameters: dict[str, dict[str, Any]] = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    except (yaml.YAMLError, ValueError, RecursionError, StopIteration, KeyError, TypeError, AttributeError):
        sys.exit(f"kfp: {package} is not a compiled pipeline; make one with `python -m pipelines.un2clip`")
    return parameters


def _trust(cli: Any) -> None:
    """Give the command line an option --ca-file, and its client the certificates that this or a variable names."""
    import click

    def remember(context: Any, option: Any, value: str | None) -> None:
        if value:
            os.environ[CA_VARIABLES[0]] = value  # for requests too, which fetches tokens

    def connect(*args: Any) -> Any:
        from kfp.client import Client

        variable = next((name for name in CA_VARIABLES if os.environ.get(name)), None)
        file = os.environ[variable] if variable else None
        if file and not Path(file).is_file():
            sys.exit(f"kfp: {variable} must name a file of certificates, and {file} is none")
        return Client(*args, ssl_ca_cert=file)

    said = f"Certificates (PEM) to trust the server by; otherwise {' or '.join(CA_VARIABLES)}, or Mozilla's."
    kind = click.Path(exists=True, dir_okay=False)
    cli.cli.params.append(click.Option(["--ca-file"], type=kind, expose_value=False, callback=remember, help=said))
    cli.client = SimpleNamespace(Client=connect)


def _find_token() -> None:
    """Use the pod's token where its place is named; kfp itself reads it only if no endpoint is given."""
    path = os.environ.get("KF_PIPELINES_SA_TOKEN_PATH")
    if path and "KFP_EXISTING_TOKEN" not in os.environ:
        try:
            os.environ["KFP_EXISTING_TOKEN"] = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            what = getattr(error, "strerror", None) or "it is not UTF-8"
            sys.exit(f"kfp: cannot read the token at {path}, which KF_PIPELINES_SA_TOKEN_PATH names: {what}")


def main() -> None:
    """Run the stock command line with the rewritten arguments."""
    try:
        from kfp.cli import cli, run
        from kfp.cli.__main__ import main as kfp
    except ImportError:
        sys.exit(f"kfp: {sys.executable} has no kfp; run `make setup`, or put a python3 that has it on PATH")
    import click

    try:
        sys.argv = ["kfp", *rewrite(sys.argv[1:])]
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    run.display_run = show_run
    _trust(cli)
    _find_token()
    kfp()


if __name__ == "__main__":
    main()

"""The command line: `un2clip STAGE --name=path ...`, and a few commands for people.

It takes stage names and paths only; numbers come from params.yaml and world.yaml. The flags of a stage are the names of
its function.
"""

import argparse
import inspect
import os
import select
import signal
import sys
import warnings
from pathlib import Path

from un2clip.cli import RENAMED, add_commands
from un2clip.config import lookup, read_params
from un2clip.errors import Stopped, Terminated, UserError, disks_in_words
from un2clip.stages import SEEDS, STAGES, get_stage, run_stage, sections, stage_params

#: Stages that are a command as well, and the flag that only the stage has.
BOTH = {"ask": "--questions"}


def main(argv: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and exit status 2, a signal's stop 128 + its number."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    args = sys.argv[1:] if argv is None else argv
    try:
        with disks_in_words([Path.cwd()]):
            status = _run(args)
            sys.stdout.flush()
            return status
    except UserError as error:
        _say(str(error))
        return 128 + error.signal if isinstance(error, Stopped) and error.signal else 2
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it ends
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        _say("interrupted; finished stages are kept")
        return 128 + signal.SIGINT
    except Terminated as stopped:
        _say("stopped by SIGTERM; finished stages are kept, the same command goes on")
        return int(str(stopped.code))


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more, as after `| head -1`."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in stdout.poll(0))


def _say(message: str) -> None:
    """Print a sentence on a line of its own, also where a progress bar was cut off."""
    from tqdm import tqdm  # here, since only what went wrong needs it

    tqdm.write(f"un2clip: {message}", file=sys.stderr)


def _run(args: list[str]) -> int:
    if args and args[0] in RENAMED:
        raise UserError(f"`un2clip {args[0]}` is `un2clip {RENAMED[args[0]]}` now, with the same arguments")
    if is_stage(args):
        _run_stage(args[0], stage_parser(args[0]).parse_args(args[1:]))
    else:
        options = new_parser().parse_args(args or ["--help"])
        options.run(options)
    return 0


def is_stage(args: list[str]) -> bool:
    """Whether a stage is called: of one that has a command's name too, with the flag that only the stage has."""
    if not args or args[0] not in STAGES:
        return False
    flag = BOTH.get(args[0])
    return flag is None or any(word.partition("=")[0] == flag for word in args)


def new_parser(*, flags: bool = False) -> argparse.ArgumentParser:
    """The parser of every command; a stage has one of its own, since making it imports the stage.

    Args:
        flags: import every stage, so that the parser knows their flags too.
    """
    parser = argparse.ArgumentParser(prog="un2clip", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in (name for name in STAGES if name not in BOTH):
        parents = [stage_parser(name)] if flags else []
        said = f"stage; `un2clip {name} --help` lists its names"
        commands.add_parser(name, add_help=False, parents=parents, help=said)
    add_commands(commands)
    completion = commands.add_parser("completion", help="a script for your shell; docs/README.md")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    completion.set_defaults(run=_complete)
    return parser


def _complete(options: argparse.Namespace) -> None:
    """Print a script that completes commands, flags and the names of files; nothing of un2clip runs at a TAB."""
    try:
        import shtab
    except ImportError:
        raise UserError("completion is written by shtab, which is not installed; pip install shtab") from None
    parser = new_parser(flags=True)
    waiting = [parser]
    while waiting:
        for action in waiting.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
            elif action.type is Path or (action.option_strings and not action.help and action.nargs != 0):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))


def stage_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one stage: a flag for each of its names."""
    stage = get_stage(name)
    parser = argparse.ArgumentParser(
        prog=f"un2clip {name}", description=inspect.getdoc(stage), formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--params",
        type=Path,
        default=Path("params.yaml"),
        help="the numbers (default: params.yaml, and world.yaml beside it)",
    )
    parser.add_argument(
        "--overlay", type=Path, action="append", help="a file of configs/, laid over them; may be repeated"
    )
    for key, parameter in inspect.signature(stage).parameters.items():
        if key not in ("params", *sections(name)):
            several = "append" if parameter.annotation in (list[Path], list[str]) else "store"
            parser.add_argument(f"--{key}", required=True, action=several)
    return parser


def _run_stage(name: str, options: argparse.Namespace) -> None:
    given = vars(options)
    params = read_params(given.pop("params"), given.pop("overlay") or [])
    if name not in params:
        raise UserError(f"the numbers have no section {name}")
    if name == "finetune" and "promote" in params:  # a rule that nothing can pass costs no training
        stage_params("promote", params["promote"])
    given |= {name: _integer(name, given[name]) for name in SEEDS if name in given}
    given |= {key: lookup(params, key, "section of the numbers") for key in sections(name)}
    run_stage(name, params[name], **given)


def _integer(name: str, text: str) -> int:
    if not text.lstrip("-").isdecimal():
        raise UserError(f"--{name} must be an integer, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())

"""What all commands share."""

import argparse
from pathlib import Path
from typing import Any

Args = argparse.Namespace
Commands = Any  # argparse keeps the class of add_subparsers' result to itself

#: The numbers; the other files of them lie beside it.
PARAMS = Path("params.yaml")


def add_overlay(parser: argparse.ArgumentParser) -> None:
    """The flag of every command whose numbers an overlay may change."""
    parser.add_argument("--overlay", type=Path, action="append", default=[], help="file of configs/; may be repeated")

"""What all commands share."""

import argparse
from pathlib import Path
from typing import Any

Args = argparse.Namespace
Commands = Any  # argparse keeps the class of add_subparsers' result to itself

#: The numbers; the other files of them lie beside it.
PARAMS = Path("params.yaml")

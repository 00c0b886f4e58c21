"""The commands beside the stages: each is a parser and a function of the parsed arguments.

What they import, they import when they run, so that `--help` stays quick.
"""

from un2clip.cli import data, runs, weights
from un2clip.cli.words import PARAMS, Commands

__all__ = ["PARAMS", "RENAMED", "add_commands"]

#: Commands that had another name -> their name now.
RENAMED = {"encoder": "convert"}


def add_commands(commands: Commands) -> None:
    """Add every command to the parser; each sets `run`, a function of its arguments."""
    for add in (
        runs.add_doctor,
        runs.add_init,
        weights.add_convert,
        weights.add_pin,
        runs.add_flags,
        data.add_fetch,
        data.add_download,
        data.add_edits,
        data.add_calibrate,
        data.add_draws,
        data.add_ask,
        runs.add_pair,
        runs.add_study,
        runs.add_controls,
        runs.add_aggregate,
        weights.add_export,
        weights.add_embed,
        weights.add_rollback,
        weights.add_publish,
        weights.add_verify,
        runs.add_show,
        runs.add_explain,
        runs.add_plan,
    ):
        add(commands)

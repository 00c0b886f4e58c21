"""What goes wrong, in words: a mistake of the user, a stop that was asked for, a cause in one line."""

import re


class UserError(ValueError):
    """Something the user can mend. The command line prints its message alone, without a traceback."""


class Stopped(UserError):
    """A signal asked a stage to stop, and what it did so far is kept."""


def reason(error: BaseException) -> str:
    """The error that began it, in one line: behind a refused connection MLflow stacks four."""
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {without_password(' '.join(str(error).split()))}"


def without_password(text: str) -> str:
    """The text, with the user and password of every address in it hidden."""
    return re.sub(r"//[^/@\s]+@", "//***@", text)

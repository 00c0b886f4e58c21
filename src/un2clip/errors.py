"""What goes wrong, in words: a mistake of the user, a stop that was asked for, a cause in one line."""

import re

LETTERS = 200  # of a cause: a library's message may repeat the whole file that it did not like


class UserError(ValueError):
    """Something the user can mend. The command line prints its message alone, without a traceback.

    The message is fit to be shown, whatever names are in it: each argument is one line, control characters are
    escaped, and secrets in addresses are hidden.
    """

    def __str__(self) -> str:
        return "\n".join(shown(str(line)) for line in self.args)


class Stopped(UserError):
    """A signal asked a stage to stop, and what it did so far is kept."""


def reason(error: BaseException) -> str:
    """The error that began it, in one line: behind a refused connection MLflow stacks four."""
    while before := error.__cause__ or error.__context__:
        error = before
    return f"{type(error).__name__}: {cause(error)}"


def cause(error: object) -> str:
    """An error's message in one line of at most LETTERS letters, fit to be shown."""
    text = " ".join(str(error).split())
    return shown(text if len(text) <= LETTERS else text[: LETTERS - 3] + "...")


def shown(text: str) -> str:
    """The text as it may be printed: what is not printable is escaped, secrets in addresses are hidden.

    Names come from tars, tables and other people's folders. A terminal obeys the control characters in them, and a
    name that is not UTF-8 cannot be printed at all.
    """
    text = without_password(text)
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def without_password(text: str) -> str:
    """The text with the user and password of every address in it hidden, and the values of every query (`?token=`)."""
    text = re.sub(r"//(\S*)@", _without_user, text)
    return re.sub(r"([?&][\w.~%+-]+=)[^&#\s'\"<>]+", r"\1***", text)


def _without_user(match: re.Match[str]) -> str:
    """Up to the last @ of the word: who types a password into an address does not quote its @ and /."""
    authority = re.split(r"[/?#]", match[1])[0]
    host_and_port = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", authority)
    if "@" not in authority and authority != match[1] and host_and_port:
        return match[0]  # an @ in the path of an address without a user
    return "//***@"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "backslashreplace").decode()

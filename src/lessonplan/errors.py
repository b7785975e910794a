"""The one error that bad input ends in, and the words that help to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave cannot be used: a file, a label, a key, an argument.

    The message names the place (file, row or key), what was found, what was expected and what to
    do. The command line prints it without a traceback and exits with status 2.
    """


def nearest(name: str, known: Iterable[object]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or ``""`` when none is close."""
    matches = difflib.get_close_matches(name.lower(), {str(k).lower(): None for k in known}, n=1)
    if not matches:
        return ""
    original = next(str(k) for k in known if str(k).lower() == matches[0])
    return f" Did you mean {original!r}?"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

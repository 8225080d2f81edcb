"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake or circumstance that the user can mend.

    The message says what is wrong, where, and what to do; the command line prints it without a traceback and exits
    with code 2. Anything else that escapes is a defect of ours and keeps its traceback.
    """


class BadRequest(UserError):
    """What was asked is wrong, whoever asked. The message may be sent to a client: it tells nothing of this machine."""


class NotFound(BadRequest):
    """It asks for what there is not."""


def printable(text: str) -> str:
    """`text` without what a terminal would obey: control and direction marks are written out. Line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """What to tell for a name of data that is none: the nearest ones, or all of them."""
    near = difflib.get_close_matches(str(name).lower(), list(known), n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known)}."
    return UserError(f"no {what} is called {name!r}; {hint} `reczero data list` shows them all.")

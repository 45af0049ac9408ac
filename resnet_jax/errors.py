"""The one error that means "you asked for something that cannot be done"."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Its message names the value, what was expected and what to do; the command line prints it without a traceback."""


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Returns ``'; did you mean X?'`` where something close exists, and the full list of valid names otherwise."""
    names = sorted(set(valid))
    begun = [name for name in names if wrong and name.startswith(wrong)]
    close = begun[:3] or difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there is {', '.join(names)}" if names else "; there is none"

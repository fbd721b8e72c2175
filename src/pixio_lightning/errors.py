"""What a user is told: one line that says what is wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input; the command line prints its text and exits with code 2."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the closest of `choices`, or an empty string."""
    found = difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.6)
    return f", did you mean '{found[0]}'?" if found else ""

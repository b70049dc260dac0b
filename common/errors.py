"""Errors that the user can mend; a command turns them into one line each and exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Result = TypeVar("Result")


class UserError(Exception):
    """Something that the person at the keyboard can mend.

    The message is one line: the file or key, what is wrong with it, and the remedy.
    """


class UserErrors(UserError):
    """Several mendable problems, found before any work started; one line each in ``problems``."""

    def __init__(self, problems: Sequence[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def attempted(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """What the calls return; where some of them raise UserError, UserErrors with the problems of all."""
    results, problems = [], []
    for call in calls:
        try:
            results.append(call())
        except UserErrors as error:
            problems += error.problems
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserErrors(list(dict.fromkeys(problems)))
    return results


class TrainingDiverged(Exception):
    """The loss became NaN or infinite: nobody's typing mistake, so exit status 1, but no traceback either."""


class Notice(UserWarning):
    """Something that a user should know; commands print it as a plain line."""


def nearest(name: str, valid: Iterable[str], called: Callable[[str], str] = str) -> str:
    """Return a phrase that helps with a misspelt name: ``did you mean 'x'?`` or the list of valid names.

    ``called``: how the name is to be written.
    """
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    return f"did you mean '{called(close[0])}'?" if close else "valid names: " + ", ".join(valid)

"""The one error that is meant for the person at the terminal."""

from __future__ import annotations


class Failure(Exception):
    """Something a person can mend: what was wrong and where, and in `hint` what to do about it.

    A program prints it as two lines and exits with 1; it never shows a traceback for it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(Failure):
    """A flag, environment variable or settings file that cannot be understood: exit code 2."""

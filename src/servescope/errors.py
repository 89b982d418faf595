"""Whose fault an error is: the user's, the target's, or ours.

A fault of the server *during* a run is no exception at all: it is a record with a failure class.
"""


class ServescopeError(Exception):
    """An error with a message for the user and the exit status that goes with it."""

    exit_status = 1


class BadInput(ServescopeError):
    """What the user asked for cannot be done: the field, the value and what would be right."""

    exit_status = 2

    def __init__(self, field: str, value: object, want: str) -> None:
        self.field, self.value, self.want = field, value, want
        super().__init__(f"{field}: {shorten(str(value))!r}: {want}")


class Unreachable(ServescopeError):
    """The target cannot be reached, or answers nothing useful."""

    exit_status = 3


class NotKept(ServescopeError):
    """Results cannot be written any more: the disk is full, say. What was written is kept."""


def shorten(text: str, limit: int = 120) -> str:
    """Cut a long text in its middle, so that both ends can still be recognised."""
    if len(text) <= limit:
        return text
    keep = (limit - 3) // 2
    return f"{text[:keep]}...{text[-keep:]}"

"""What a wrong input must meet."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from servescope.errors import BadInput


@contextmanager
def refused(
    field: str, want: str = "", *, place: str = ""
) -> Iterator[pytest.ExceptionInfo[BadInput]]:
    """What is done inside is refused in one line, with `field` and what would be right.

    `place`: how the value named ends, such as a file's name and the number of its line.
    """
    with pytest.raises(BadInput) as caught:
        yield caught
    error = caught.value
    assert error.field == field, error
    assert want in error.want, error
    assert str(error.value).endswith(place), error
    assert "\n" not in str(error), error

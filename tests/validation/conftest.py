"""All published figures beside their predictions, reckoned once."""

import pytest

from servescope.validation import run


@pytest.fixture(scope="package")
def cells():
    return run(traces="/nowhere")

import gzip
import shutil
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A directory with the files of the real tools, unpacked."""
    folder = tmp_path_factory.mktemp("imports") / "fixtures"
    shutil.copytree(FIXTURES, folder)
    for packed in folder.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    return folder

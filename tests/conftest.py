"""Settings of all tests and what they share; machines are noisy: slowness alone is no failure."""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")

for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]  # this machine's proxy has no part in what runs on loopback


@pytest.fixture
def save(tmp_path):
    """Writes a file and says where it is."""

    def write(name: str, content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write

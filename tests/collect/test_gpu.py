"""GPUs: NVIDIA's own binding on a driver library of ours with known values; AMD's on a stand-in."""

import shutil
import subprocess
import sys
from pathlib import Path
from time import monotonic_ns

import pytest

from servescope.collect import Absent
from servescope.collect._collection import Collection
from servescope.collect.gpu import THROTTLES, Gpu
from servescope.telemetry import names
from tests.support.command import until

compiler = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(not compiler, reason="needs a C compiler")


def compiled(folder: Path, *words: str) -> Path:
    source, library = Path(__file__).with_name("nvml.c"), folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", *words, "-o", library, source], check=True)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A folder with a driver library of two GPUs."""
    return compiled(tmp_path_factory.mktemp("driver"))


def collected(least: int = 1):
    """Samples of a GPU collector in its process, by name and GPU; and what is said of it."""
    samples = []
    with Collection([], [Gpu(every=0.02)]) as collection:
        collection.begin(monotonic_ns())

        def enough():
            samples.extend(collection.drain())
            read = [one for one in samples if one.name == "up"]
            return len(read) >= least or any(one.last for one in collection._told.values())

        until(enough, "readings")
        collection.end()
        samples += collection.drain()
    return samples, collection


@needs_compiler
def test_an_nvidia_gpu_is_read_with_all_that_its_driver_tells(driver, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    samples, collection = collected(3)
    assert (collection.notes, collection.collected) == ([], {"gpu": "read"})
    found = [{}, {}]
    for one in samples:
        if one.name not in ("up", "gpu_throttled"):
            gpu = int(one.labels["gpu"])
            assert one.labels == {
                "gpu": f"{gpu}",
                "name": f"NVIDIA Test {gpu}",
                "uuid": f"GPU-{gpu}",
            }
            found[gpu][one.name] = one.value
    both = {"gpu_memory_bytes": 80 << 30, "gpu_power_limit_w": 700.0}
    both |= {"gpu_sm_clock_hz": 1.98e9, "gpu_memory_clock_hz": 2.619e9}
    assert found[0] == both | {
        "gpu_busy_ratio": 0.7,
        "gpu_memory_used_bytes": 60 << 30,
        "gpu_power_w": 250.5,
        "gpu_energy_j": pytest.approx(123456.789),
        "gpu_temperature_c": 40,
        "gpu_pcie_sent_bytes_per_s": 1e6,
        "gpu_pcie_received_bytes_per_s": 2e6,
        "gpu_nvlink_sent_bytes": 3 * 1024,
        "gpu_nvlink_received_bytes": 4 * 1024,
    }
    assert found[1] == both | {
        "gpu_busy_ratio": 0.71,
        "gpu_memory_used_bytes": 61 << 30,
        "gpu_power_w": pytest.approx(250.501),
        "gpu_temperature_c": 41,
    }


def test_a_reason_to_throttle_is_called_alike_whether_the_driver_or_a_page_tells_it():
    assert THROTTLES == names.THROTTLES


@needs_compiler
@pytest.mark.parametrize("old", [False, True])
def test_each_reason_to_throttle_is_a_series_and_idle_or_a_fixed_clock_is_none(
    tmp_path, monkeypatch, old
):
    """Their call was named otherwise in older drivers."""
    folder = compiled(tmp_path, "-DOLD") if old else compiled(tmp_path)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    samples, _ = collected()
    said = {
        (one.labels["gpu"], one.labels["reason"]): one.value
        for one in samples
        if one.name == "gpu_throttled"
    }
    assert set(said) == {(gpu, reason) for gpu in "01" for reason in THROTTLES}
    throttled = {key for key, value in said.items() if value}
    assert throttled == {("0", "sw_power_cap"), ("0", "hw_thermal_slowdown")}


@needs_compiler
def test_a_gpu_that_is_lost_while_a_run_goes_on_is_told(driver, monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv("LOST", "1")
    samples, collection = collected(6)
    assert {one.value for one in samples if one.name == "up"} == {0.0, 1.0}
    assert "readings failed, the first with: GPU is lost" in collection.notes[0]


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "words"), [("BROKEN", "Driver Not Loaded"), ("EMPTY", "NVML knows none")]
)
def test_a_driver_without_a_gpu_is_quiet(driver, monkeypatch, variable, words):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    monkeypatch.setenv(variable, "1")
    samples, collection = collected()
    assert (samples, collection.notes) == ([], [])
    assert words in collection.collected["gpu"]


AMDSMI = '''
"""As AMD's documentation has it."""
import enum

class AmdSmiException(Exception): pass
class AmdSmiMemoryType(enum.Enum): VRAM = 0
class AmdSmiTemperatureMetric(enum.Enum): CURRENT = 0
class AmdSmiTemperatureType(enum.Enum): HOTSPOT = 1
class AmdSmiClkType(enum.Enum):
    GFX = 0
    MEM = 4

def amdsmi_init(): pass
def amdsmi_get_processor_handles(): return ["one"]
def amdsmi_get_gpu_asic_info(gpu): return {"market_name": "AMD Instinct MI300X"}
def amdsmi_get_gpu_device_uuid(gpu): return "abcd"
def amdsmi_get_gpu_activity(gpu):
    return {"gfx_activity": 42, "umc_activity": 3, "mm_activity": "N/A"}
def amdsmi_get_gpu_memory_usage(gpu, kind): return 5 << 30
def amdsmi_get_gpu_memory_total(gpu, kind): return 192 << 30
def amdsmi_get_power_info(gpu):
    return {"socket_power": "N/A", "current_socket_power": 310, "power_limit": 750_000_000}
def amdsmi_get_energy_count(gpu):
    return {"energy_accumulator": 1_000_000, "counter_resolution": 15.3, "timestamp": 1}
def amdsmi_get_temp_metric(gpu, sensor, metric): raise AmdSmiException("not supported")
def amdsmi_get_clock_info(gpu, kind): return {"clk": 2100 if kind is AmdSmiClkType.GFX else "N/A"}
'''


def test_an_amd_gpu_says_the_same_things_by_the_same_names(tmp_path, monkeypatch):
    """None was at hand: a stand-in for AMD's module shows the units, not that the driver agrees."""
    (tmp_path / "amdsmi.py").write_text(AMDSMI)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    found = list(Gpu().read())
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    amd = [one for one in found if one.labels["name"] == "AMD Instinct MI300X"]
    assert {one.name: one.value for one in amd} == {
        "gpu_busy_ratio": 0.42,
        "gpu_memory_used_bytes": 5 << 30,
        "gpu_memory_bytes": 192 << 30,
        "gpu_power_w": 310,
        "gpu_power_limit_w": 750.0,
        "gpu_energy_j": pytest.approx(15.3),
        "gpu_sm_clock_hz": 2.1e9,
    }
    assert amd[0].labels == {"gpu": "0", "name": "AMD Instinct MI300X", "uuid": "abcd"}


def test_a_machine_without_a_gpu_says_so_in_a_few_words():
    try:
        Gpu().read()
    except Absent as absent:
        assert str(absent).startswith("no GPU (")  # noqa: PT017 (a machine may have one)

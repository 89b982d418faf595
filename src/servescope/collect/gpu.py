"""GPUs: NVIDIA's by NVML (nvidia-ml-py), AMD's by AMD SMI (amdsmi, which comes with ROCm).

A value that a GPU or its driver does not tell is left out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from servescope.collect import Absent, Collector, Reading

MI = 1_000_000
THROTTLES = {
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
}
"""NVML's bits for why a GPU is slowed down. That it is idle, or set to a fixed clock, is no such
reason. `telemetry.names` has them for pages; to import that would bring numpy into this process."""


class Gpu(Collector, frozen=True, tag="gpu"):
    """Load, memory, power, energy, temperature, clocks, PCIe, NVLink and throttling of each GPU."""

    def reader(self) -> Callable[[], Iterable[Reading]]:
        """Raises Absent where there is no GPU whose driver is here."""
        why, kinds = [], []
        for kind in (_Nvidia, _Amd):
            try:
                kinds.append(kind())
            except Absent as error:
                why.append(str(error))
        if not kinds:
            raise Absent(f"no GPU ({', '.join(why)})")
        return lambda: [reading for kind in kinds for reading in kind.read()]


class _Nvidia:
    """NVIDIA's GPUs of this machine."""

    def __init__(self) -> None:
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            raise Absent("no NVIDIA driver") from None
        import pynvml  # noqa: PLC0415 (55 ms)

        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            raise Absent(f"NVML says {_said(error)}") from None
        if not count:
            raise Absent("NVML knows none")
        self._gpus = [
            (one := pynvml.nvmlDeviceGetHandleByIndex(k), self._labels(one, k))
            for k in range(count)
        ]
        self._turn = 0
        # What may be refused without the GPU being lost: it has no such thing, or tells not us.
        self._refusals = {
            *(pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION),
            *(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT),
        }

    def _labels(self, gpu: object, number: int) -> dict[str, str]:
        nvml = self._nvml
        return {
            "gpu": str(number),
            "name": str(nvml.nvmlDeviceGetName(gpu)),
            "uuid": str(nvml.nvmlDeviceGetUUID(gpu)),
        }

    def read(self) -> Iterator[Reading]:
        """All GPUs, and the PCIe traffic of one: for that the driver watches the bus for 40 ms."""
        self._turn += 1
        for number, (gpu, labels) in enumerate(self._gpus):
            parts = [self._load, self._memory, self._power, self._clocks, self._nvlink]
            parts += [self._pcie] if (self._turn + number) % len(self._gpus) == 0 else []
            for part in parts:
                for name, value in part(gpu):
                    yield Reading(name, value, labels)
            for reason, value in self._throttles(gpu):
                yield Reading("gpu_throttled", value, {**labels, "reason": reason})

    def _ask(self, ask: Callable[..., Any], *words: object) -> Any:  # noqa: ANN401 (NVML's)
        """What NVML answers; None where it has no such thing. Raises NVMLError."""
        try:
            return ask(*words)
        except self._nvml.NVMLError as error:
            if error.value in self._refusals:
                return None
            raise

    def _one(
        self, name: str, scale: float, ask: Callable[..., Any], *words: object
    ) -> Iterator[tuple[str, float]]:
        if (found := self._ask(ask, *words)) is not None:
            yield name, found * scale

    def _load(self, gpu: object) -> Iterator[tuple[str, float]]:
        if (found := self._ask(self._nvml.nvmlDeviceGetUtilizationRates, gpu)) is not None:
            yield "gpu_busy_ratio", found.gpu / 100

    def _memory(self, gpu: object) -> Iterator[tuple[str, float]]:
        if (found := self._ask(self._nvml.nvmlDeviceGetMemoryInfo, gpu)) is not None:
            yield "gpu_memory_used_bytes", found.used
            yield "gpu_memory_bytes", found.total

    def _power(self, gpu: object) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        yield from self._one("gpu_power_w", 1e-3, nvml.nvmlDeviceGetPowerUsage, gpu)
        yield from self._one("gpu_power_limit_w", 1e-3, nvml.nvmlDeviceGetEnforcedPowerLimit, gpu)
        yield from self._one("gpu_energy_j", 1e-3, nvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
        kind = nvml.NVML_TEMPERATURE_GPU
        yield from self._one("gpu_temperature_c", 1, nvml.nvmlDeviceGetTemperature, gpu, kind)

    def _clocks(self, gpu: object) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        for name, kind in (("sm", nvml.NVML_CLOCK_SM), ("memory", nvml.NVML_CLOCK_MEM)):
            yield from self._one(f"gpu_{name}_clock_hz", MI, nvml.nvmlDeviceGetClockInfo, gpu, kind)

    def _pcie(self, gpu: object) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        ways = (("sent", nvml.NVML_PCIE_UTIL_TX_BYTES), ("received", nvml.NVML_PCIE_UTIL_RX_BYTES))
        for way, kind in ways:
            name = f"gpu_pcie_{way}_bytes_per_s"
            yield from self._one(name, 1000, nvml.nvmlDeviceGetPcieThroughput, gpu, kind)

    def _nvlink(self, gpu: object) -> Iterator[tuple[str, float]]:
        """All links together."""
        nvml = self._nvml
        every_link = 0xFFFFFFFF
        fields = [
            ("gpu_nvlink_sent_bytes", nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
            ("gpu_nvlink_received_bytes", nvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX),
        ]
        asked = [(field, every_link) for _, field in fields]
        for (name, _), found in zip(
            fields, self._ask(nvml.nvmlDeviceGetFieldValues, gpu, asked) or (), strict=False
        ):
            if found.nvmlReturn == nvml.NVML_SUCCESS:
                yield name, found.value.ullVal * 1024

    def _throttles(self, gpu: object) -> Iterator[tuple[str, float]]:
        nvml = self._nvml
        found = self._ask(nvml.nvmlDeviceGetCurrentClocksEventReasons, gpu)
        if found is None:  # its name before driver 535
            found = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, gpu)
        if found is not None:
            for reason, bit in THROTTLES.items():
                yield reason, float(bool(found & bit))


class _Amd:
    """AMD's GPUs of this machine."""

    def __init__(self) -> None:
        try:
            import amdsmi  # noqa: PLC0415 (comes with ROCm)
        except Exception:  # noqa: BLE001 (without the driver's library it raises what it likes)
            raise Absent("no amdsmi") from None
        self._smi: Any = amdsmi
        try:
            amdsmi.amdsmi_init()
            self._gpus = [
                (gpu, {"gpu": str(k), **self._who(gpu)})
                for k, gpu in enumerate(amdsmi.amdsmi_get_processor_handles())
            ]
        except amdsmi.AmdSmiException as error:
            raise Absent(f"AMD SMI says {_said(error)}") from None
        if not self._gpus:
            raise Absent("AMD SMI knows none")

    def _who(self, gpu: object) -> dict[str, str]:
        smi = self._smi
        asic = self._ask(smi.amdsmi_get_gpu_asic_info, gpu) or {}
        uuid = self._ask(smi.amdsmi_get_gpu_device_uuid, gpu)
        return {"name": str(asic.get("market_name", "")), "uuid": str(uuid or "")}

    def _ask(self, ask: Callable[..., Any], *words: object) -> Any:  # noqa: ANN401 (AMD SMI's)
        """What AMD SMI answers; None where it does not."""
        try:
            return ask(*words)
        except self._smi.AmdSmiException:
            return None

    def read(self) -> Iterator[Reading]:
        """All GPUs. Raises OSError where none says anything any more."""
        said = False
        for gpu, labels in self._gpus:
            for name, value in self._values(gpu):
                if isinstance(value, int | float):  # what it does not know is the text N/A
                    said = True
                    yield Reading(name, value, labels)
        if not said:
            raise OSError("AMD SMI says nothing of any GPU")

    def _values(self, gpu: object) -> Iterator[tuple[str, Any]]:
        smi = self._smi
        busy = _number(self._ask(smi.amdsmi_get_gpu_activity, gpu), "gfx_activity")
        yield "gpu_busy_ratio", busy if busy is None else busy / 100
        vram = smi.AmdSmiMemoryType.VRAM
        yield "gpu_memory_used_bytes", self._ask(smi.amdsmi_get_gpu_memory_usage, gpu, vram)
        yield "gpu_memory_bytes", self._ask(smi.amdsmi_get_gpu_memory_total, gpu, vram)
        power = self._ask(smi.amdsmi_get_power_info, gpu)
        names = ("socket_power", "current_socket_power", "average_socket_power")
        yield "gpu_power_w", _number(power, *names)
        limit = _number(power, "power_limit")
        # Releases differ in whether it is in watts or microwatts; no GPU takes 100 kW.
        yield "gpu_power_limit_w", limit / MI if limit is not None and limit > 1e5 else limit
        energy = self._ask(smi.amdsmi_get_energy_count, gpu)
        ticks = _number(energy, "energy_accumulator", "power")  # its name before ROCm 6.1
        tick_uj = _number(energy, "counter_resolution")
        if ticks is not None and tick_uj is not None:
            yield "gpu_energy_j", ticks * tick_uj / MI
        now = smi.AmdSmiTemperatureMetric.CURRENT
        hottest = smi.AmdSmiTemperatureType.HOTSPOT
        yield "gpu_temperature_c", self._ask(smi.amdsmi_get_temp_metric, gpu, hottest, now)
        for name, kind in (("sm", smi.AmdSmiClkType.GFX), ("memory", smi.AmdSmiClkType.MEM)):
            clock = _number(self._ask(smi.amdsmi_get_clock_info, gpu, kind), "clk", "cur_clk")
            yield f"gpu_{name}_clock_hz", clock if clock is None else clock * MI


def _number(found: object, *names: str) -> float | None:
    """The first of these in an answer that is a number."""
    said = found if isinstance(found, dict) else {}
    numbers = (said[name] for name in names if isinstance(said.get(name), int | float))
    return next(numbers, None)


def _said(error: Exception) -> str:
    return f"'{error}'"

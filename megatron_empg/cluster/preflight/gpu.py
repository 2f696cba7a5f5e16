"""GPUs through NVML (nvidia-ml-py's pynvml), once before a run and as events while it lives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_empg.cluster.preflight.facts import GpuFacts, GpuList
from megatron_empg.common.errors import EmpgError

_THROTTLE = {
    "power brake": "nvmlClocksEventReasonHwPowerBrakeSlowdown",
    "hardware slowdown": "nvmlClocksEventReasonHwSlowdown",
    "hardware thermal slowdown": "nvmlClocksEventReasonHwThermalSlowdown",
    "software thermal slowdown": "nvmlClocksEventReasonSwThermalSlowdown",
}
"""Reasons for low clocks that are faults; idle and the power cap of a busy GPU are not."""


def read_gpus() -> GpuList:
    """All GPUs of this machine; ``absent`` says why there are none."""
    try:
        with _nvml() as nvml:
            return collect(nvml)
    except NoNvml as error:
        return GpuList(absent=str(error), device_files=Path("/dev/nvidiactl").exists())


class NoNvml(EmpgError):
    """NVML cannot be used here; the message says why."""


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    try:
        import pynvml
    except ImportError:
        raise NoNvml("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoNvml(f"NVML does not start: {error}") from None
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def collect(nvml: Any) -> GpuList:
    """Ask everything of an initialised pynvml. What a GPU does not support stays None."""
    cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
    cuda_driver = None
    if cuda is not None:
        cuda_driver = f"{cuda // 1000}.{cuda % 1000 // 10}"
    return GpuList(
        driver=_ask(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda_driver=cuda_driver,
        gpus=[_collect_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())],
        on_bus=count_on_bus(),
    )


def count_on_bus(root: Path = Path("/sys/bus/pci/devices")) -> int | None:
    """NVIDIA's display and 3D controllers; None where the bus cannot be read."""
    count = 0
    try:
        for path in root.iterdir():
            vendor = (path / "vendor").read_text(encoding="utf-8")
            kind = (path / "class").read_text(encoding="utf-8")
            if vendor.strip() == "0x10de" and kind.startswith(("0x0300", "0x0302")):
                count += 1
    except OSError:
        return None
    return count


def _is_enabled(nvml: Any, state: int | None) -> bool | None:
    """None where the GPU does not say."""
    if state is None:
        return None
    return bool(state == nvml.NVML_FEATURE_ENABLED)


def _collect_gpu(nvml: Any, index: int) -> GpuFacts:
    """One that fell off the bus is still counted; it must cost its own facts and no other GPU's."""
    try:
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        name, uuid = nvml.nvmlDeviceGetName(gpu), nvml.nvmlDeviceGetUUID(gpu)
    except nvml.NVMLError as error:
        return GpuFacts(index=index, lost=str(error))
    lost: str | None = None

    def ask(function: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal lost
        try:
            return function(gpu, *arguments)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                lost = str(error)
            return None

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    ecc = ask(nvml.nvmlDeviceGetEccMode)
    rows = ask(nvml.nvmlDeviceGetRemappedRows)
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksEventReasons)
    persistence = ask(nvml.nvmlDeviceGetPersistenceMode)
    uncorrected, volatile = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    ecc_uncorrected = ask(nvml.nvmlDeviceGetTotalEccErrors, uncorrected, volatile)
    power_limit = _watts(ask(nvml.nvmlDeviceGetPowerManagementLimit))
    power_default = _watts(ask(nvml.nvmlDeviceGetPowerManagementDefaultLimit))
    nvlinks_up, nvlinks_down = _links(ask, nvml)
    pending = failed = None
    if rows is not None:
        pending, failed = bool(rows[2]), bool(rows[3])
    return GpuFacts(
        index=index,
        name=name,
        uuid=uuid,
        lost=lost,
        memory_total=memory and memory.total,
        memory_free=memory and memory.free,
        ecc_on=_is_enabled(nvml, ecc and ecc[0]),
        ecc_uncorrected=ecc_uncorrected,
        remap_pending=pending,
        remap_failed=failed,
        throttle=_reasons(nvml, reasons),
        power_limit=power_limit,
        power_default=power_default,
        persistence=_is_enabled(nvml, persistence),
        nvlinks_up=nvlinks_up,
        nvlinks_down=nvlinks_down,
    )


def _links(ask: Callable[..., Any], nvml: Any) -> tuple[int | None, list[int] | None]:
    """How many NVLinks of a GPU are up, and which are down; None of one that has none."""
    up, down = 0, []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        state = ask(nvml.nvmlDeviceGetNvLinkState, link)
        if state is None:
            continue  # there is no such link
        if state:
            up += 1
        else:
            down.append(link)
    if not up and not down:
        return None, None
    return up, down


def _reasons(nvml: Any, bits: int | None) -> list[str] | None:
    """Why the clocks are low, of the faults that we know; None where that cannot be read."""
    if bits is None:
        return None
    found = []
    for words, name in _THROTTLE.items():
        if bits & getattr(nvml, name):
            found.append(words)
    return found


def _ask(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None when this GPU, driver or user has none."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None


def _watts(milliwatts: int | None) -> float | None:
    if milliwatts is None:
        return None
    return milliwatts / 1000


@dataclass(frozen=True)
class GpuEvent:
    """A critical error as it happens. ``gpu`` is None where NVML does not say which; ``xid`` is None for an
    uncorrectable memory error without one."""

    gpu: int | None
    xid: int | None


FELL_OFF_THE_BUS = 79
"""The Xid of a GPU that no longer answers."""


class GpuEvents:
    """NVML's events of all GPUs, for a watchdog: ``with GpuEvents() as events: events.wait(1.0)``.

    Raises NoNvml on entering where NVML cannot be used or no GPU reports events.
    """

    def __enter__(self) -> GpuEvents:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            self._nvml = nvml = opening.enter_context(_nvml())
            self._set = nvml.nvmlEventSetCreate()
            opening.callback(nvml.nvmlEventSetFree, self._set)
            wanted = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
            watched = 0
            self._lost = []
            for index in range(nvml.nvmlDeviceGetCount()):
                try:
                    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                except nvml.NVMLError as error:
                    if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                        self._lost.append(index)
                    continue  # the others are watched all the same
                supported = _ask(nvml, nvml.nvmlDeviceGetSupportedEventTypes, gpu) or 0
                if supported & wanted:
                    nvml.nvmlDeviceRegisterEvents(gpu, supported & wanted, self._set)
                    watched += 1
            if not watched and not self._lost:
                raise NoNvml("no GPU reports events through NVML")
            self._stack = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self, seconds: float) -> GpuEvent | None:
        """The next event, or None when there is none for so long. Raises NoNvml when NVML has no more to say."""
        nvml = self._nvml
        if self._lost:
            return GpuEvent(self._lost.pop(0), FELL_OFF_THE_BUS)
        try:
            event = nvml.nvmlEventSetWait_v2(self._set, int(seconds * 1000))
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_TIMEOUT:
                return None
            if error.value == nvml.NVML_ERROR_GPU_IS_LOST:  # said instead of an event, and without the GPU
                return GpuEvent(None, FELL_OFF_THE_BUS)
            raise NoNvml(f"NVML's events ended: {error}") from None
        xid = None
        if event.eventType == nvml.nvmlEventTypeXidCriticalError:
            xid = event.eventData
        return GpuEvent(_ask(nvml, nvml.nvmlDeviceGetIndex, event.device), xid)

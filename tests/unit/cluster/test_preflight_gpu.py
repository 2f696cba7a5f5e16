"""The collector of GPU facts. nvidia-ml-py is not among the CPU requirements: here a stand-in for its module, with
the real one's names and return values, shows only which calls are made and what becomes of the answers. The test
marked gpu asks the real library.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_empg.cluster.preflight import gpu
from megatron_empg.cluster.preflight.facts import NodeFacts
from megatron_empg.cluster.preflight.judge import Requirements, judge
from megatron_empg.cluster.preflight.judge_gpus import GPU_CHECKS

XID, DOUBLE_BIT = 8, 2


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


class StandIn:
    """pynvml with two GPUs; the second supports neither ECC nor NVLink nor events."""

    NVMLError = NVMLError
    NVML_ERROR_TIMEOUT, NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_GPU_IS_LOST = 10, 3, 15
    NVML_ERROR_RESET_REQUIRED = 16
    NVML_FEATURE_ENABLED, NVML_NVLINK_MAX_LINKS = 1, 4
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 1, 0
    nvmlEventTypeXidCriticalError, nvmlEventTypeDoubleBitEccError = XID, DOUBLE_BIT
    nvmlClocksEventReasonHwSlowdown = 8
    nvmlClocksEventReasonSwThermalSlowdown = 32
    nvmlClocksEventReasonHwThermalSlowdown = 64
    nvmlClocksEventReasonHwPowerBrakeSlowdown = 128

    def __init__(self) -> None:
        self.started = 0
        self.registered: list[tuple[int, int]] = []
        self.events: list[Any] = []

    def nvmlInit(self) -> None:
        self.started += 1

    def nvmlShutdown(self) -> None:
        self.started -= 1

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlSystemGetCudaDriverVersion_v2": 13010,
            "nvmlSystemGetDriverVersion": "580.65.06",
            "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetName": "NVIDIA H200",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=141 << 30, free=140 << 30, used=1 << 30),
            "nvmlDeviceGetEccMode": [1, 1],
            "nvmlDeviceGetTotalEccErrors": 4,
            "nvmlDeviceGetRemappedRows": (0, 1, 1, 0),
            "nvmlDeviceGetCurrentClocksEventReasons": 0x1 | 0x4 | 0x40,
            "nvmlDeviceGetPersistenceMode": 0,
            "nvmlDeviceGetPowerManagementLimit": 600_000,
            "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
            "nvmlEventSetCreate": "set",
            "nvmlEventSetFree": None,
        }
        return lambda *_: answers[name]

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetIndex(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def _first_only(self, handle: int, answer: Any) -> Any:
        if handle:
            raise NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return answer

    def nvmlDeviceGetEccMode(self, handle: int) -> Any:
        return self._first_only(handle, [1, 1])

    def nvmlDeviceGetNvLinkState(self, handle: int, link: int) -> Any:
        return self._first_only(handle or int(link == 3), int(link != 2))

    def nvmlDeviceGetSupportedEventTypes(self, handle: int) -> Any:
        return self._first_only(handle, XID | 0x4)

    def nvmlDeviceRegisterEvents(self, handle: int, types: int, _: Any) -> None:
        self.registered.append((handle, types))

    def nvmlEventSetWait_v2(self, _: Any, milliseconds: int) -> Any:
        assert milliseconds == 1500
        found = self.events.pop(0) if self.events else self.NVML_ERROR_TIMEOUT
        if isinstance(found, int):
            raise NVMLError(found)
        return found


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)  # type: ignore[arg-type]
    return stand_in


def test_answers_become_facts(nvml: StandIn) -> None:
    facts = gpu.read_gpus()
    assert nvml.started == 0
    assert (facts.driver, facts.cuda_driver, facts.absent) == ("580.65.06", "13.1", None)
    first, second = facts.gpus
    assert (first.name, first.uuid, first.memory_free) == ("NVIDIA H200", "GPU-0", 140 << 30)
    assert (first.ecc_on, first.ecc_uncorrected, first.remap_pending, first.remap_failed) == (True, 4, True, False)
    assert first.throttle == ["hardware thermal slowdown"]  # neither idle nor the power cap
    assert (first.power_limit, first.power_default, first.persistence) == (600.0, 700.0, False)
    assert (first.nvlinks_up, first.nvlinks_down) == (2, [2])
    assert (second.ecc_on, second.nvlinks_up, second.nvlinks_down) == (None, None, None)


def test_events_are_watched_where_supported_and_read_one_by_one(nvml: StandIn) -> None:
    nvml.events = [
        SimpleNamespace(device=0, eventType=XID, eventData=79),
        SimpleNamespace(device=0, eventType=DOUBLE_BIT, eventData=0),
        nvml.NVML_ERROR_GPU_IS_LOST,
    ]
    with gpu.GpuEvents() as events:
        assert nvml.started == 1
        assert nvml.registered == [(0, XID)]
        assert events.wait(1.5) == gpu.GpuEvent(0, 79)
        assert events.wait(1.5) == gpu.GpuEvent(0, None)
        assert events.wait(1.5) == gpu.GpuEvent(None, gpu.FELL_OFF_THE_BUS)
        assert events.wait(1.5) is None
    assert nvml.started == 0


@pytest.mark.parametrize("call", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID", "nvmlDeviceGetMemoryInfo"])
def test_a_lost_gpu_costs_its_own_facts_and_no_others(
    nvml: StandIn, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    answer = getattr(nvml, call)

    def lost(handle: int, *rest: Any) -> Any:
        if handle == 0:
            raise NVMLError(nvml.NVML_ERROR_GPU_IS_LOST)
        return answer(handle, *rest)

    monkeypatch.setattr(nvml, call, lost, raising=False)
    facts = gpu.read_gpus()
    assert facts.driver == "580.65.06"
    assert [one.lost for one in facts.gpus] == ["NVML error 15", None]
    assert facts.gpus[1].uuid == "GPU-1"
    findings = judge([NodeFacts(name="here", gpus=facts)], Requirements(), GPU_CHECKS)
    (said,) = [f.detail for f in findings if f.check == "GPUs" and f.status == "FAIL"]
    assert said == "GPU 0 does not answer (NVML error 15); 1 x NVIDIA H200"


def test_a_gpu_that_is_lost_before_the_watch_begins_is_its_first_event(
    nvml: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(index: int) -> int:
        if index == 1:
            raise NVMLError(nvml.NVML_ERROR_GPU_IS_LOST)
        return index

    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByIndex", lost)
    with gpu.GpuEvents() as events:
        assert nvml.registered == [(0, XID)], "the others are watched"
        assert events.wait(1.5) == gpu.GpuEvent(1, gpu.FELL_OFF_THE_BUS)
        assert events.wait(1.5) is None


def test_gpus_of_the_bus_are_counted_whatever_the_driver_says(tmp_path: Path) -> None:
    devices = {
        "3b:00.0": ("0x10de", "0x030200"),
        "4c:00.0": ("0x10de", "0x030000"),
        "5d:00.0": ("0x10de", "0x068000"),
        "00:02.0": ("0x8086", "0x030000"),
    }
    for name, (vendor, kind) in devices.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert gpu.count_on_bus(tmp_path) == 2
    assert gpu.count_on_bus(tmp_path / "none") is None


def test_no_events_to_watch_is_said(nvml: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "nvmlDeviceGetSupportedEventTypes", lambda _: 0)
    with pytest.raises(gpu.NoNvml, match="no GPU reports events"), gpu.GpuEvents():
        pass
    assert nvml.started == 0


def test_without_the_driver_the_reason_is_kept(nvml: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NVMLError(12)

    monkeypatch.setattr(nvml, "nvmlInit", refuse)
    assert gpu.read_gpus().absent == "NVML does not start: NVML error 12"


@pytest.mark.gpu
def test_the_real_library_answers() -> None:
    facts = gpu.read_gpus()
    assert facts.absent is None
    assert facts.driver
    assert facts.gpus
    for one in facts.gpus:
        assert one.memory_total
        assert one.memory_free is not None
        assert one.throttle is not None
        assert one.power_limit
    findings = judge([NodeFacts(name="here", gpus=facts)], Requirements(use_gpus=True), GPU_CHECKS)
    assert next(f for f in findings if f.check == "GPUs").status == "PASS"
    with gpu.GpuEvents() as events:
        assert events.wait(0.1) is None

"""pynvml of a machine with one GPU, whose Xids a test writes to a file: $EMPG_TEST_XIDS/NODE, a number a line."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

NVML_ERROR_TIMEOUT, NVML_ERROR_GPU_IS_LOST = 10, 15
nvmlEventTypeXidCriticalError, nvmlEventTypeDoubleBitEccError = 8, 2
_told = 0


class NVMLError(Exception):
    def __init__(self, value):
        super().__init__(f"NVML error {value}")
        self.value = value


def nvmlInit():
    pass


def nvmlShutdown():
    pass


def nvmlDeviceGetCount():
    return 1


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetIndex(handle):
    return handle


def nvmlDeviceGetSupportedEventTypes(handle):
    return nvmlEventTypeXidCriticalError


def nvmlEventSetCreate():
    return "set"


def nvmlEventSetFree(events):
    pass


def nvmlDeviceRegisterEvents(handle, types, events):
    pass


def nvmlEventSetWait_v2(events, milliseconds):
    global _told
    path = Path(os.environ["EMPG_TEST_XIDS"], os.environ["SLURMD_NODENAME"])
    xids = path.read_text().split() if path.exists() else []
    if len(xids) > _told:
        _told += 1
        return SimpleNamespace(device=0, eventType=nvmlEventTypeXidCriticalError, eventData=int(xids[_told - 1]))
    time.sleep(milliseconds / 1000)
    raise NVMLError(NVML_ERROR_TIMEOUT)

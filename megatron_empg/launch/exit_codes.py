"""With which code a run ends: what failed."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Of a Slurm job, and of `empg train` where a process of the run failed."""

    CONFIGURATION = 10
    PREFLIGHT = 11
    CONVERSION = 12
    SERVICE = 13
    ENGINES = 14
    DRIVER = 15
    TRAINER = 16
    WATCHDOG = 17
    NODE = 18
    RESTARTS = 19


LASTING_FAULT = 78
"""Status of a process of the run that would fail in the same way again (sysexits' EX_CONFIG): one of the project's own
errors, such as a setting that cannot be or a policy that diverged. Every other status may be an accident."""

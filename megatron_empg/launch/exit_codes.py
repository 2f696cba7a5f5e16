"""With which code a run ends: what failed."""

from __future__ import annotations

from enum import IntEnum

from megatron_empg.common.errors import HUNG


class ExitCode(IntEnum):
    """Exit codes of a Slurm job. `empg train` exits with 1 instead, and says which process failed."""

    CONFIGURATION = 10
    PREFLIGHT = 11
    CONVERSION = 12
    SERVICE = 13
    ENGINES = 14
    DRIVER = 15
    TRAINER = 16
    WATCHDOG = HUNG
    NODE = 18
    RESTARTS = 19

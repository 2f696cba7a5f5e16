"""Why a job ends: a code and a message that says what to do."""

from __future__ import annotations

from megatron_empg.common.errors import EmpgError
from megatron_empg.launch.exit_codes import ExitCode


class JobError(EmpgError, RuntimeError):
    """The job ends with `exit_code`; its output says "error (WORD): MESSAGE"."""

    exit_code: ExitCode

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = code

    @property
    def word(self) -> str:
        """What failed, in a word: the code's name, for every service "search"."""
        return "search" if self.exit_code is ExitCode.SERVICE else self.exit_code.name.lower()


def misconfigured(message: str) -> JobError:
    """A job that cannot be as it is; code 10."""
    return JobError(ExitCode.CONFIGURATION, message)

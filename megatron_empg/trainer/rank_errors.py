"""How a trainer rank ends with an error: the project's own are told without the frames of the program."""

from __future__ import annotations

from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.multiprocessing.errors.error_handler import ErrorHandler

from megatron_empg.common.errors import EmpgError, told_to_the_launcher


class PlainErrors(ErrorHandler):
    """Records what a rank failed of, which torchrun then shows at the end of its log."""

    def record_exception(self, e: BaseException) -> None:
        if isinstance(e, EmpgError):
            e.__traceback__, e.__cause__, e.__suppress_context__ = None, None, True
        super().record_exception(e)


def run_rank(main: Callable[[], None]) -> None:
    """Run a rank's `main`. Raises SystemExit in the place of one of the project's errors, with a status that says
    whether it would come again, and whatever else `main` raises."""
    with told_to_the_launcher():
        record(main, PlainErrors())()

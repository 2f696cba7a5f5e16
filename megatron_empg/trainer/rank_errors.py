"""How a trainer rank ends with an error: the project's own are told without the frames of the program."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.elastic.multiprocessing.errors.error_handler import ErrorHandler

from megatron_empg.common.errors import is_own


class PlainErrors(ErrorHandler):
    """Records what a rank failed of, which torchrun then shows at the end of its log."""

    def record_exception(self, e: BaseException) -> None:
        if is_own(e):
            e.__traceback__, e.__cause__, e.__suppress_context__ = None, None, True
        super().record_exception(e)


def run_rank(main: Callable[[], None]) -> None:
    """Run a rank's `main`. Raises SystemExit in the place of one of the project's errors, and whatever else it
    raises."""
    try:
        record(main, PlainErrors())()
    except Exception as error:
        if not is_own(error):
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None

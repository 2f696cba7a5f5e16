"""torchrun that ends with the process that started it: ``python -m megatron_empg.launch.torchrun …``.

Its ranks in turn end with it, so that a killed launcher leaves nobody writing to the run folder. Its status says
how they failed, which torchrun's own does not.
"""

import os
import signal
import sys
from collections.abc import Iterable

from megatron_empg.common.errors import LASTING_FAULT
from megatron_empg.common.processes import PARENT_VARIABLE, die_with_parent

FOLLOWS = (-signal.SIGTERM, -signal.SIGABRT)
"""How ranks end when another has failed: torchrun's signal, and that of NCCL's own watchdog."""


def status_of_ranks(statuses: Iterable[int]) -> int:
    """The exit status that speaks for the failed ranks; `statuses` are negative for signals.

    A lasting fault before a signal that nobody sent for another rank's sake, that before any other error. A signal
    N is told as 128 + N, as shells do.
    """
    given = list(statuses)
    if LASTING_FAULT in given:
        return LASTING_FAULT
    killed = [status for status in given if status < 0 and status not in FOLLOWS]
    failed = [status for status in given if status > 0]
    first = (killed or failed or given)[0]
    return first if first > 0 else 128 - first


def main() -> None:
    die_with_parent()
    os.environ[PARENT_VARIABLE] = str(os.getpid())  # for the ranks
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:  # it says which rank failed of what; where torchrun met it concerns nobody
        print(error, file=sys.stderr, flush=True)
        in_order = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        raise SystemExit(status_of_ranks(failure.exitcode for failure in in_order)) from None
    except SignalException as ended:
        raise SystemExit(128 + ended.sigval) from None


if __name__ == "__main__":
    main()

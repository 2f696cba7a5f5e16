"""torchrun that ends with the process that started it: ``python -m megatron_empg.launch.torchrun …``.

Its ranks in turn end with it, so that a killed launcher leaves nobody writing to the run folder.
"""

from megatron_empg.common.processes import die_with_parent


def main() -> None:
    die_with_parent()
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun()
    except ChildFailedError as error:  # it says which rank failed of what; where torchrun met it concerns nobody
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()

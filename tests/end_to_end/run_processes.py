"""The processes of a run, by what each is."""

import psutil


def processes(launcher: int, kind: str) -> list[psutil.Process]:
    """The run's living ones of that kind."""
    found = []
    for child in psutil.Process(launcher).children(recursive=True):
        try:
            if kind_of(child) == kind:
                found.append(child)
        except psutil.Error:
            continue
    return found


def kind_of(process: psutil.Process) -> str:
    """The kind, or "" for a process that is of none."""
    kind, parent = kind_by_command(process), process.parent()
    # A core is forked from its server; it has the server's command line unless it has a title of its own.
    if "EngineCore" in process.name() or (kind == "engine" and parent and kind_by_command(parent) == "engine"):
        return "engine core"
    return kind


def kind_by_command(process: psutil.Process) -> str:
    words = process.cmdline()
    for module, kind in (
        ("megatron_empg.launch.torchrun", "torchrun"),
        ("megatron_empg.rollout.server", "engine"),
        ("megatron_empg.launch.rollout_service", "driver"),
        ("megatron_empg.trainer.worker", "rank"),
    ):
        if module in words:
            return kind
    return ""

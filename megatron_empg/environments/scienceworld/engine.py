"""ScienceWorld's engine, as far as an episode needs it: one simulation at a time in a Java process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_empg.environments.scienceworld.errors import EngineRaised, ScienceWorldFailed
from megatron_empg.environments.scienceworld.java_installation import VERSION, JavaInstallation
from megatron_empg.environments.scienceworld.java_process import HEAP_MIB, JavaProcess
from megatron_empg.environments.scienceworld.variations import Variation

PATIENCE = 300.0
"""Seconds that a call may take where an episode's steps have no limit."""


@dataclass(frozen=True)
class CommandOutcome:
    """What a command brought about. `score` is in points: 0 to 100, or -100 once the task has failed."""

    observation: str
    score: int
    completed: bool


class Engine:
    """Starts its process when it is first needed, and another after it has ended. It simulates one variation, the
    one that was loaded last. Any method raises ScienceWorldFailed."""

    def __init__(self, needed: JavaInstallation, timeout: float | None, heap_mib: int = HEAP_MIB) -> None:
        """`timeout`: seconds that one call may take."""
        self._needed = needed
        self._heap_mib = heap_mib
        self._timeout = timeout or PATIENCE
        self._process: JavaProcess | None = None
        self._simulator: Any = None
        self._loaded = 0

    @property
    def pid(self) -> int | None:
        """The process's number, where there is one."""
        if self._process is None or not self._process.alive():
            return None
        return self._process.pid

    def start(self) -> None:
        """Start the process now, unless it runs."""
        self._running()

    def load(self, variation: Variation, simplifications: str, *, with_gold: bool = False) -> int:
        """Begin a simulation. Returns its number, by which its later calls are known.

        `with_gold`: have the engine find out how the task is solved, which takes seconds, and a minute for some.
        """
        process = self._running()
        told = process.call(self._simulator.load, variation.task, variation.number, simplifications, with_gold)
        if told:
            raise ScienceWorldFailed(f"ScienceWorld's engine cannot load {variation.id}: {told}")
        self._loaded += 1
        return self._loaded

    def step(self, simulation: int, command: str) -> CommandOutcome:
        """Carry out a command."""
        process = self._of(simulation)
        observation = process.call(self._simulator.step, command)
        score = process.call(self._simulator.getScore)
        completed = process.call(self._simulator.getCompleted)
        return CommandOutcome(str(observation), round(100 * score), bool(completed))

    def surroundings(self, simulation: int) -> str:
        """The room and what the agent carries. It takes no time in the simulation."""
        process = self._of(simulation)
        room = process.call(self._simulator.freeActionLook)
        carried = process.call(self._simulator.freeActionInventory)
        return f"{room}\n{carried}"

    def description(self, simulation: int) -> str:
        """What is to be done."""
        return str(self._of(simulation).call(self._simulator.getTaskDescription))

    def objects(self, simulation: int) -> list[str]:
        """Names of all things that a command may name now."""
        return self._of(simulation).lines(self._simulator.getPossibleObjects)

    def commands(self, simulation: int) -> list[str]:
        """All commands that would do something now: hundreds, or thousands."""
        return self._of(simulation).lines(self._simulator.getValidActionObjectCombinations)

    def forms(self, simulation: int) -> list[str]:
        """The forms of commands, with OBJ for a thing."""
        return self._of(simulation).lines(self._simulator.getPossibleActions)

    def gold_path(self, simulation: int) -> list[str]:
        """Commands that solve the task, of a simulation that was loaded `with_gold`."""
        return self._of(simulation).lines(self._simulator.getGoldActionSequence)

    def broke_inside(self, simulation: int) -> str | None:
        """The exception that ended the simulation from inside, if one did."""
        process = self._of(simulation)
        interface = process.call(process.call(self._simulator.agentInterface).get)
        if not process.call(interface.isInErrorState):
            return None
        return str(process.call(interface.getErrorStateMessage))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _running(self) -> JavaProcess:
        if self._process is None or not self._process.alive():
            self.close()
            self._process = JavaProcess(self._needed, self._timeout, self._heap_mib)
            self._simulator = self._new_simulator(self._process)
        return self._process

    def _new_simulator(self, process: JavaProcess) -> Any:
        try:
            made = process.java.scienceworld.runtime.pythonapi.PythonInterface
            # py4j takes a class that is not there for a package.
            if callable(made) and type(made).__name__ == "JavaClass":
                return process.call(made)
            fault = "it holds no engine"
        except EngineRaised as error:
            fault = str(error)
        self.close()
        raise ScienceWorldFailed(
            f"ScienceWorld's engine cannot be loaded from {self._needed.jar} ({fault}), which may be damaged: "
            f"`pip install --force-reinstall scienceworld=={VERSION}`"
        )

    def _of(self, simulation: int) -> JavaProcess:
        if self._process is None:
            raise ScienceWorldFailed("ScienceWorld's engine was closed")
        if simulation != self._loaded:
            raise ScienceWorldFailed(
                "another episode has begun on this ScienceWorld engine, which has one at a time"
            )
        return self._process

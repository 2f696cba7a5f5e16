"""ScienceWorld, prepared: a model, and whether this machine has what plays it. The tasks are in its package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megatron_empg.environments.scienceworld.errors import EngineUnavailable
from megatron_empg.environments.scienceworld.java_installation import VERSION, installed, java_version
from megatron_empg.prepare.errors import PrepareError
from megatron_empg.prepare.manifest import SCIENCEWORLD, PreparedEngine
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparation import Preparation, PreparationParts
from megatron_empg.prepare.sources import AnySources
from megatron_empg.prepare.work import InitialFolder, PreparationRun


class ScienceWorldPreparation(Preparation):
    """What agents that experiment are trained on."""

    name: ClassVar[str] = SCIENCEWORLD

    def __init__(self, sources: AnySources) -> None:
        self._sources = sources

    @property
    def default_model(self) -> str:
        return self._sources.model

    def parts(self, options: PreparationOptions) -> PreparationParts:
        return PreparationParts((), (EnginePart(),))


@dataclass(frozen=True)
class EnginePart:
    """Java and the packages, looked for before anything is fetched. Nodes must have them too."""

    name: ClassVar[str] = "engine"

    def require(self) -> None:
        _engine()

    def cost(self, before: InitialFolder) -> None:
        """Nothing: it is only looked for."""

    def make(self, work: PreparationRun) -> None:
        engine = _engine()
        work.keep(engine=engine)
        work.say(f"{engine.package} with Java {engine.java}; the nodes that roll out need both too")


def _engine() -> PreparedEngine:
    """What there is here. Raises PrepareError."""
    try:
        found = installed()
        return PreparedEngine(package=f"scienceworld {VERSION}", java=java_version(found.java))
    except EngineUnavailable as error:
        raise PrepareError(f"{error}; `--only model` prepares the rest") from None

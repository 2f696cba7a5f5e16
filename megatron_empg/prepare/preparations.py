"""The preparations by their names: each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_empg.prepare.manifest import ALFWORLD, DEEPSEARCH, SCIENCEWORLD, WEBSHOP
from megatron_empg.prepare.preparation import Preparation
from megatron_empg.prepare.sources import FOLDER, AnySources, read_sources


def preparation(name: str, sources: Path | None) -> Preparation:
    """The preparation called `name`, of the places of a file, or of the shipped one. Raises PrepareError."""
    return _MAKERS[name](sources or FOLDER / f"{name}_sources.yaml")


def _deepsearch(sources: Path) -> Preparation:
    from megatron_empg.prepare.deepsearch import DeepSearchPreparation

    return DeepSearchPreparation(read_sources(sources))


def _alfworld(sources: Path) -> Preparation:
    from megatron_empg.prepare.alfworld import AlfWorldPreparation, AlfWorldSources

    return AlfWorldPreparation(read_sources(sources, AlfWorldSources))


def _webshop(sources: Path) -> Preparation:
    from megatron_empg.prepare.webshop import WebShopPreparation, WebShopSources

    return WebShopPreparation(read_sources(sources, WebShopSources))


def _scienceworld(sources: Path) -> Preparation:
    from megatron_empg.prepare.scienceworld import ScienceWorldPreparation

    return ScienceWorldPreparation(read_sources(sources, AnySources))


_MAKERS: Mapping[str, Callable[[Path], Preparation]] = {
    DEEPSEARCH: _deepsearch,
    ALFWORLD: _alfworld,
    WEBSHOP: _webshop,
    SCIENCEWORLD: _scienceworld,
}

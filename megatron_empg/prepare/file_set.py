"""Files that belong together, each from the first of its places that has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeVar

from megatron_empg.prepare.fetching import FolderFetcher
from megatron_empg.prepare.file_costs import bytes_left
from megatron_empg.prepare.manifest import PreparedFile
from megatron_empg.prepare.sources import Alternative
from megatron_empg.prepare.work import InitialFolder, PreparationRun

K = TypeVar("K", bound=str)


def bytes_left_of_all(wanted: Mapping[K, list[Alternative]], folder: str, before: InitialFolder) -> int:
    """Bytes that files below `folder` still have to be fetched of."""
    return sum(bytes_left(before.folder, folder, places, before.records) for places in wanted.values())


def fetched(
    wanted: Mapping[K, list[Alternative]], folder: str, work: PreparationRun, fetching: FolderFetcher
) -> dict[K, PreparedFile]:
    """The files below `folder`, each under its key. Raises PrepareError."""
    names = fetching.each([partial(fetching.any_of, folder, places) for places in wanted.values()])
    return {key: work.file(name) for key, name in zip(wanted, names, strict=True)}

"""What can be wrong with a catalogue or a server."""

from __future__ import annotations

from pathlib import Path

from megatron_empg.common.errors import EmpgError


class CatalogueError(EmpgError, ValueError):
    """A file of products, attributes or instructions is not what it should be: says which, where and what."""

    exit_code = 2

    def __init__(self, path: Path | str, place: str, fault: str) -> None:
        if place:
            where = f"{path}, {place}"
        else:
            where = str(path)
        super().__init__(f"{where}: {fault}")


class ShopServerError(EmpgError, RuntimeError):
    """A WebShop server did not answer as one does; the episode that asked ends as an error."""

"""One file out of an archive, by its name; where it stands inside, and what else is there, does not matter."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from megatron_empg.common.files import put_in_place
from megatron_empg.prepare.disk import named_disk_faults
from megatron_empg.prepare.errors import PrepareError

BLOCK = 1 << 22


def take_out(archive: Path, member: str, destination: Path) -> None:
    """Write the archive's file called `member` (its last part counts) to `destination`. Raises PrepareError."""
    aside = destination.with_name(f"{destination.name}.part")
    with named_disk_faults(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _opened(archive, member) as inside, aside.open("wb") as file:
                shutil.copyfileobj(inside, file, BLOCK)
        except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as error:
            aside.unlink(missing_ok=True)
            raise PrepareError(f"{archive} is damaged or no archive: {error}; delete it and try again") from None
        put_in_place(aside, destination)


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            names = [entry.filename for entry in zipped.infolist() if not entry.is_dir()]
            with zipped.open(_only(names, member, archive)) as inside:
                yield inside
        return
    with tarfile.open(archive) as tar:
        names = [entry.name for entry in tar.getmembers() if entry.isfile()]
        found = tar.extractfile(_only(names, member, archive))
        assert found is not None, "files alone were looked at"
        with found:
            yield found


def _only(names: list[str], member: str, archive: Path) -> str:
    found = [name for name in names if name == member or name.endswith(f"/{member}")]
    # What a Mac leaves beside each file of an archive has the same last part in a folder of its own.
    found = [name for name in found if not name.startswith("__MACOSX/")]
    if len(found) != 1:
        raise PrepareError(f"{archive} has {len(found)} files called {member}, and must have one")
    return found[0]

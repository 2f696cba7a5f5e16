"""One run of a preparation: what it costs, room for it, its parts one by one, and prepared.json after each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_empg.common.locks import hold
from megatron_empg.prepare.costs import Bandwidth, Cost, require_room, table
from megatron_empg.prepare.disk import named_disk_faults
from megatron_empg.prepare.download import Download
from megatron_empg.prepare.errors import BrokenManifest, PrepareError
from megatron_empg.prepare.fetching import DOWNLOADS, FolderFetcher
from megatron_empg.prepare.hub import Hub
from megatron_empg.prepare.manifest import NAME, PARTS, PreparedFolder, read_prepared
from megatron_empg.prepare.model import require_model
from megatron_empg.prepare.model_part import ModelPart
from megatron_empg.prepare.options import PreparationOptions
from megatron_empg.prepare.preparation import FetchedPart, Preparation, PreparationPart, PreparationParts
from megatron_empg.prepare.progress import FetchProgress
from megatron_empg.prepare.records import FileRecords
from megatron_empg.prepare.web import new_client
from megatron_empg.prepare.work import InitialFolder, PreparationRun

Say = Callable[[str], None]


def run(preparation: Preparation, options: PreparationOptions, say: Say) -> PreparedFolder:
    """Fetch and make what is wanted and not here yet, and write prepared.json. Raises PrepareError."""
    require_model(preparation.model_of(options))
    parts = wanted_parts(preparation, options)
    before = _before(preparation.name, options.folder, say)
    costs = costs_of(parts, before)
    bandwidth = Bandwidth.of(options.bandwidth, before.records.bytes_per_second)
    say(table(costs, bandwidth, options.folder, preparation.estimate))
    require_room(costs, options.folder)
    if options.dry_run:
        _say_what_is_missing(parts.all(), say)
        say("nothing was fetched (--dry-run)")
        return before.prepared
    for part in parts.all():
        part.require()
    with alone(options.folder):
        # Read again: another preparation may have ended since.
        before = _before(preparation.name, options.folder, _say_nothing)
        work = PreparationRun(before, say, options.quick)
        _fetch(parts.fetched, work, before.records, options, sum(cost.fetch for cost in costs))
        for made in parts.made:
            made.make(work)
        shutil.rmtree(options.folder / DOWNLOADS, ignore_errors=True)
    return work.prepared


def wanted_parts(preparation: Preparation, options: PreparationOptions) -> PreparationParts:
    """Those of the preparation that are wanted; the model is fetched after what is small."""
    known = preparation.parts(options)
    fetched = (*known.fetched, ModelPart(preparation.model_of(options)))
    return PreparationParts(
        tuple(part for part in fetched if options.wants(part.name)),
        tuple(part for part in known.made if options.wants(part.name)),
    )


def costs_of(parts: PreparationParts, before: InitialFolder) -> list[Cost]:
    """The costs per part, in the order of --only, of what is not here yet; no server is asked."""
    order = PARTS[before.prepared.preparation]
    costs = []
    for part in sorted(parts.all(), key=lambda part: order.index(part.name)):
        cost = part.cost(before)
        if cost is not None:
            costs.append(cost)
    return costs


def _fetch(
    parts: tuple[FetchedPart, ...],
    work: PreparationRun,
    records: FileRecords,
    options: PreparationOptions,
    expected: int,
) -> None:
    """In order: what is wrong with a place of small things shows before the hours that a model takes."""
    if not parts:
        return
    progress = FetchProgress(expected, work.say)
    with new_client(options.connections) as client, progress:
        download = Download(client, received=progress.add, say=work.say)
        hub = Hub(client, download.stop.wait)
        fetching = FolderFetcher(options.folder, download, hub, records, work.say, options.connections)
        for part in parts:
            part.fetch(work, fetching)
    if progress.bytes_per_second:
        records.put_speed(progress.bytes_per_second)


def _say_what_is_missing(parts: tuple[PreparationPart, ...], say: Say) -> None:
    for part in parts:
        try:
            part.require()
        except PrepareError as error:
            say(f"fix this first: {error}")


def _before(preparation: str, folder: Path, say: Say) -> InitialFolder:
    return InitialFolder(folder, _earlier(preparation, folder, say), FileRecords(folder))


def _say_nothing(_: str) -> None:
    """What is broken was told when it was read first."""


def _earlier(preparation: str, folder: Path, say: Say) -> PreparedFolder:
    """What earlier runs wrote down. A broken note of them is written anew: what was fetched is noted elsewhere."""
    try:
        return read_prepared(folder, preparation) or PreparedFolder(preparation=preparation)
    except BrokenManifest:
        say(
            f"{folder / NAME} is broken and is written again, with the parts of this run; files that are there "
            "are checked and kept. Name each further model by --model again"
        )
        return PreparedFolder(preparation=preparation)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Two preparations of one folder would write into each other's parts. Raises PrepareError."""
    with named_disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".prepare.lock").open("a", encoding="utf-8")
    with lock:
        try:
            hold(lock, PrepareError(f"another preparation of {folder} is running; wait for it"))
        except OSError as error:
            raise PrepareError(f"{folder} cannot be locked: {error.strerror}") from None
        yield

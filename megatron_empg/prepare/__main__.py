"""The command behind slurm/prepare.sh: `python -m megatron_empg.prepare deepsearch|alfworld|… DIR`.

Exit codes: 0 prepared, 1 a fault that is named, 2 wrong usage, 130 interrupted. After any of them, and after a
kill, the same command goes on where it ended.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.common.errors import told_plainly
from megatron_empg.common.options import parse_command_line
from megatron_empg.common.values import expanded
from megatron_empg.prepare.manifest import ALFWORLD, PARTS, WEBSHOP

MAKE_THEIR_OWN = (ALFWORLD, WEBSHOP)
"""Preparations that can do without published data."""


def _folder(text: str) -> Path:
    try:
        return expanded(Path(text)).absolute()
    except ValueError as error:
        raise typer.BadParameter(f"DIR {error}") from None


def _model(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("it is empty: give OWNER/NAME of the hub, a URL or a folder, or leave it out")
    return text


def _whole(text: str, most: int, what: str) -> int:
    rule = f"{text!r:.40} is not a {what}: give a whole number from 1 to {most}"
    # No longer than `most`, and in ASCII: int() would take other digits, blanks and underscores.
    digits = str(text)  # typer hands the default over as it is, a number
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(most)) and 1 <= int(digits) <= most):
        raise typer.BadParameter(rule)
    return int(digits)


def _count(text: str) -> int:
    return _whole(text, 64, "number of connections")


def _many(text: str) -> int:
    return _whole(text, 1_000_000, "number to make")


def _megabytes(text: str) -> float:
    rule = f"{text!r:.40} is not a bandwidth: give MB/s as a number above 0 and below 1000000"
    try:
        value = float(text)
    except ValueError:
        raise typer.BadParameter(rule) from None
    if not (text.isascii() and 0 < value < 1e6):
        raise typer.BadParameter(rule)
    return value


def _parts() -> str:
    return "; ".join(f"{', '.join(parts)} of {name}" for name, parts in PARTS.items())


Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", parser=_folder, help="Where all of it is to lie, on a disk that nodes share."),
]
Model = Annotated[
    str | None,
    typer.Option(parser=_model, help="OWNER/NAME of the hub, a URL or a folder; the sources' unless given."),
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="PART", help=f"This part; may be given more than once: {_parts()}."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it costs, fetch nothing.")]
Sources = Annotated[Path | None, typer.Option(help="Another list of places than the shipped one.")]
Connections = Annotated[int, typer.Option(parser=_count, help="Files fetched at once.")]
Bandwidth = Annotated[float | None, typer.Option(parser=_megabytes, help="MB/s to reckon the hours with.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Compare an index or games that are there by their sizes alone.")
]
Generated = Annotated[
    int | None,
    typer.Option(
        parser=_many,
        metavar="N",
        help="No published data: N games of alfworld for training, or N products of webshop, are made here.",
    ),
]
Python = Annotated[Path | None, typer.Option(help="The Python that has ALFWorld's engine, for --generated.")]


@dataclass(frozen=True)
class PrepareArguments:
    """Fetch and check what the jobs of slurm/ want; run it on a login node.

    HF_TOKEN in the environment is shown to the hub alone; HF_ENDPOINT names a mirror of the hub; HTTPS_PROXY a
    proxy. A place is a URL or hub:OWNER/NAME[@REVISION][:FILE].
    """

    preparation: Annotated[str, typer.Argument(help=f"One of {', '.join(PARTS)}.")]
    folder: Folder
    model: Model = None
    only: Only = None
    dry_run: DryRun = False
    sources: Sources = None
    connections: Connections = 8
    bandwidth: Bandwidth = None
    quick: Quick = False
    generated: Generated = None
    python: Python = None

    def __post_init__(self) -> None:
        """Raises typer.BadParameter for what one preparation has and this one has not."""
        name = self.preparation
        if name not in PARTS:
            rule = f"{name!r} cannot be prepared: choose from {', '.join(PARTS)}"
            raise typer.BadParameter(rule, param_hint="'preparation'")
        for part in self.only or ():
            if part not in PARTS[name]:
                choices = ", ".join(PARTS[name])
                rule = f"{part!r} is not a part of {name}: choose from {choices}"
                raise typer.BadParameter(rule, param_hint="'--only'")
        if self.generated is not None and name not in MAKE_THEIR_OWN:
            rule = f"{name} has nothing that can be made here: leave it out"
            raise typer.BadParameter(rule, param_hint="'--generated'")
        if self.python is not None and (name != ALFWORLD or self.generated is None):
            rule = "it goes with `alfworld` and --generated alone: leave it out"
            raise typer.BadParameter(rule, param_hint="'--python'")


def _say(text: str) -> None:
    stamp = time.strftime("%F %T")
    print("\n".join(f"{stamp} {line}" for line in text.splitlines()), flush=True)


def main() -> None:
    given = parse_command_line(PrepareArguments, program="bash slurm/prepare.sh")
    try:
        with told_plainly():
            _prepare(given)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def _prepare(given: PrepareArguments) -> None:
    from megatron_empg.prepare.options import PreparationOptions
    from megatron_empg.prepare.preparations import preparation
    from megatron_empg.prepare.run import run

    name, folder = given.preparation, given.folder
    options = PreparationOptions(
        folder, given.model, tuple(given.only or ()), given.connections, given.bandwidth, given.dry_run,
        given.quick, given.generated, given.python,
    )  # fmt: skip
    prepared = run(preparation(name, given.sources), options, _say)
    if given.dry_run:
        return
    missing = prepared.missing()
    if missing:
        _say(f"prepared in {folder}, but for: {', '.join(missing)}")
    else:
        _say(f"all is in {folder}; jobs find it by EMPG_DATA={folder}, or by themselves in data/{name}")


if __name__ == "__main__":
    main()

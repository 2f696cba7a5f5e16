"""The command behind slurm/prepare.sh: `python -m megatron_empg.prepare deepsearch|alfworld|… DIR`.

Exit codes: 0 prepared, 1 a fault that is named, 2 wrong usage, 130 interrupted. After any of them, and after a
kill, the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_empg.common.errors import told_plainly
from megatron_empg.prepare.manifest import ALFWORLD, PARTS, WEBSHOP

MAKE_THEIR_OWN = (ALFWORLD, WEBSHOP)
"""Preparations that can do without published data."""
EPILOG = """\
HF_TOKEN in the environment is shown to the hub alone; HF_ENDPOINT names a mirror of the hub; HTTPS_PROXY a proxy.
A place is a URL or hub:OWNER/NAME[@REVISION][:FILE]."""


def _say(text: str) -> None:
    stamp = time.strftime("%F %T")
    print("\n".join(f"{stamp} {line}" for line in text.splitlines()), flush=True)


def main() -> None:
    parser = _parser()
    given = parser.parse_args()
    _require_fitting(given, parser)
    try:
        with told_plainly():
            _prepare(given)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bash slurm/prepare.sh", epilog=EPILOG,
        description="Fetch and check what the jobs of slurm/ need; run it on a login node.",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("preparation", choices=list(PARTS))
    add("folder", metavar="DIR", type=_folder, help="where all of it is to lie, on a disk that nodes share")
    add("--model", type=_model, help="OWNER/NAME of the hub, a URL or a folder; the sources' unless given")
    add("--only", action="append", metavar="PART", help=f"this part; may be given more than once: {_parts()}")
    add("--dry-run", action="store_true", help="say what it costs, fetch nothing")
    add("--sources", type=Path, help="another list of places than the shipped one")
    add("--connections", type=_count, default=8, help="files fetched at once (default: 8)")
    add("--bandwidth", type=_megabytes, help="MB/s to reckon the hours with")
    add("--quick", action="store_true", help="compare an index or games that are there by their sizes alone")
    add(
        "--generated", type=_many, metavar="N",
        help="no published data: N games of alfworld for training, or N products of webshop, are made here",
    )  # fmt: skip
    add("--python", type=Path, help="the Python that has ALFWorld's engine, for --generated")
    return parser


def _parts() -> str:
    return "; ".join(f"{', '.join(parts)} of {name}" for name, parts in PARTS.items())


def _require_fitting(given: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """What one preparation has and another has not."""
    parts = PARTS[given.preparation]
    for part in given.only or ():
        if part not in parts:
            choices = ", ".join(parts)
            parser.error(f"argument --only: invalid choice: {part!r} (choose from {choices})")
    if given.generated is not None and given.preparation not in MAKE_THEIR_OWN:
        parser.error(f"argument --generated: {given.preparation} has nothing that can be made here: leave it out")
    if given.python is not None and (given.preparation != ALFWORLD or given.generated is None):
        parser.error("argument --python: it goes with `alfworld` and --generated alone: leave it out")


def _prepare(given: argparse.Namespace) -> None:
    from megatron_empg.prepare.preparations import preparation
    from megatron_empg.prepare.run import run
    from megatron_empg.prepare.wishes import PreparationOptions

    name, folder = given.preparation, given.folder.expanduser().absolute()
    wishes = PreparationOptions(
        folder, given.model, tuple(given.only or ()), given.connections, given.bandwidth, given.dry_run,
        given.quick, given.generated, given.python,
    )  # fmt: skip
    prepared = run(preparation(name, given.sources), wishes, _say)
    if given.dry_run:
        return
    missing = prepared.missing()
    if missing:
        _say(f"prepared in {folder}, but for: {', '.join(missing)}")
    else:
        _say(f"all is in {folder}; jobs find it by EMPG_DATA={folder}, or by themselves in data/{name}")


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("DIR is empty: name the folder that all of it is to lie in")
    return Path(text)


def _model(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(
            "it is empty: give OWNER/NAME of the hub, a URL or a folder, or leave it out"
        )
    return text


def _count(text: str) -> int:
    rule = f"{text!r} is not a number of connections: give a whole number from 1 to 64"
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(rule) from None
    if not 1 <= value <= 64:
        raise argparse.ArgumentTypeError(rule)
    return value


def _many(text: str) -> int:
    rule = f"{text!r} is not a number to make: give a whole number from 1 to 1000000"
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(rule) from None
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError(rule)
    return value


def _megabytes(text: str) -> float:
    rule = f"{text!r} is not a bandwidth: give MB/s as a number above 0 and below 1000000"
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(rule) from None
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(rule)
    return value


if __name__ == "__main__":
    main()

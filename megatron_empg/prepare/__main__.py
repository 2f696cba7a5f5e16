"""The command behind slurm/prepare.sh: `python -m megatron_empg.prepare deepsearch DIR`.

Exit codes: 0 prepared, 1 a fault that is named, 2 wrong usage, 130 interrupted. After any of them, and after a
kill, the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from megatron_empg.common.errors import told_plainly
from megatron_empg.prepare.sources import SHIPPED, read_sources

PARTS = ("model", "data", "corpus", "index")
EPILOG = """\
HF_TOKEN in the environment is shown to the hub alone; HF_ENDPOINT names a mirror of the hub; HTTPS_PROXY a proxy.
A place is a URL or hub:OWNER/NAME[@REVISION][:FILE]."""


def _say(text: str) -> None:
    stamp = time.strftime("%F %T")
    print("\n".join(f"{stamp} {line}" for line in text.splitlines()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="bash slurm/prepare.sh", epilog=EPILOG,
        description="Fetch and check what the jobs of slurm/ want; run it on a login node.",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("preparation", choices=["deepsearch"])
    parser.add_argument(
        "folder", metavar="DIR", type=_folder, help="where all of it is to lie, on a disk that nodes share"
    )
    parser.add_argument(
        "--model", type=_model, help="OWNER/NAME of the hub, a URL or a folder; the sources' unless given"
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; may be given more than once")
    parser.add_argument("--dry-run", action="store_true", help="say what it costs, fetch nothing")
    parser.add_argument(
        "--sources", type=Path, default=SHIPPED, help="another list of places than the shipped one"
    )
    parser.add_argument("--connections", type=_count, default=8, help="files fetched at once (default: 8)")
    parser.add_argument("--bandwidth", type=_megabytes, help="MB/s to reckon the hours with")
    parser.add_argument(
        "--quick", action="store_true", help="compare an index that is there by its files' sizes alone"
    )
    given = parser.parse_args()
    try:
        with told_plainly():
            _prepare(given)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None


def _prepare(given: argparse.Namespace) -> None:
    from megatron_empg.prepare.deepsearch import Wishes, prepare

    folder = given.folder.expanduser().absolute()
    wishes = Wishes(
        folder, given.model, tuple(given.only or ()), given.connections, given.bandwidth, given.dry_run,
        given.quick,
    )  # fmt: skip
    prepared = prepare(read_sources(given.sources), wishes, _say)
    if given.dry_run:
        return
    missing = prepared.missing()
    if missing:
        _say(f"prepared in {folder}, but for: {', '.join(missing)}")
    else:
        _say(f"all is in {folder}; jobs find it by EMPG_DATA={folder}, or by themselves in data/deepsearch")


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
    rule = f"{text!r} is no number of connections: give a whole number from 1 to 64"
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(rule) from None
    if not 1 <= value <= 64:
        raise argparse.ArgumentTypeError(rule)
    return value


def _megabytes(text: str) -> float:
    rule = f"{text!r} is no bandwidth: give MB/s as a number above 0 and below 1000000"
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(rule) from None
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(rule)
    return value


if __name__ == "__main__":
    main()

"""Every check that this machine's GPUs allow, and the benches, with tables for docs/gpu.md.

    python tools/gpu_check.py --out DIR              # all of it; --minutes 5 for what fits into five

Runs the tests marked ``gpu`` file by file, the engines' tests where vLLM is installed, the suite of collectives
where two GPUs are, then bench/vocab_parallel.py and bench/actor.py. It goes on after a failure, each part under a
limit of its own, and says what it could not do and why. DIR gets gpu_check.md, gpu_check.json and gpu_check.log.

Exit code: 0 nothing failed, 1 something did, 2 no CUDA device.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
TAIL_LINES, FAILURES_SHOWN, FAILURE_LINES = 12, 6, 12
LEAST_SECONDS = 20.0
"""A part is not started with less left."""
_MARK = re.compile(r"^\s*(@|pytestmark\s*=.*|.*marks\s*=\s*)pytest\.mark\.gpu\b", re.MULTILINE)
"""A mark on a test, a file or a case; not the words in a text."""
LIBRARIES = ("torch", "triton", "megatron-core", "transformer-engine", "vllm", "transformers", "nvidia-ml-py")


@dataclass(frozen=True)
class Part:
    """One command, and what it takes."""

    name: str
    command: tuple[str, ...]
    limit: float
    """Seconds."""
    needs: tuple[str, ...] = ()
    """Modules without which it says nothing."""
    gpus: int = 1
    tests: bool = True
    """Whether it is pytest."""


@dataclass
class Outcome:
    """What became of a part."""

    name: str
    status: str
    """passed, failed, timed out, or not done."""
    seconds: float = 0.0
    detail: str = ""
    """Counts of tests, or why it was not done."""
    skipped: list[str] = field(default_factory=list)
    """Tests that skipped themselves, each with its reason."""
    tail: str = ""
    """The end of what a part printed that did not pass."""

    @property
    def bad(self) -> bool:
        return self.status in ("failed", "timed out")


# What there is to do


def parts(folder: Path, memory_gib: float) -> list[Part]:
    """In the order of what says most in least time. Their results lie in ``folder``."""
    megatron = ("megatron.core",)
    checks = [_test_file(path, folder) for path in gpu_test_files(ROOT / "tests")]
    engines = _pytest("tests/end_to_end/test_engine.py", folder, limit=900, needs=("vllm",), gpu_mark=False)
    count = gpu_count()
    suite = Part(
        "collectives over NCCL",
        (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "tools/nccl_suite.py"),
        limit=900, gpus=2, tests=False,
    )  # fmt: skip
    # Two sequences of the maximum take 25 GiB of activations beside the model's 30.
    each = "2" if memory_gib > 100 else "1"
    benches = [
        Part(
            "bench: LM head",
            (sys.executable, "bench/vocab_parallel.py", "--device", "cuda", "--tokens", "4096", "16384",
             "--tensor-parallel", "8", "--json", str(folder / "vocab_parallel.json")),
            limit=240, needs=("triton",), tests=False,
        ),
        Part(
            "bench: actor",
            (sys.executable, "bench/actor.py", "--device", "cuda", "--sequences", "16", "--repeat", "2",
             "--per-microbatch", each, "--json", str(folder / "actor.json")),
            limit=420, needs=megatron, tests=False,
        ),
    ]  # fmt: skip
    return [*checks, *benches, suite, engines]


def gpu_test_files(tests: Path) -> list[Path]:
    """Files that hold tests marked ``gpu``: those of single modules first."""
    found = [path for path in tests.rglob("test_*.py") if _MARK.search(path.read_text(encoding="utf-8"))]
    return sorted(found, key=lambda path: ("unit" not in path.parts, path))


def _test_file(path: Path, folder: Path) -> Part:
    needs = ("megatron.core",) if "distributed" in path.parts else ()
    return _pytest(str(path.relative_to(ROOT)), folder, limit=300, needs=needs)


def _pytest(path: str, folder: Path, *, limit: float, needs: tuple[str, ...], gpu_mark: bool = True) -> Part:
    marked = ("-m", "gpu") if gpu_mark else ()
    report = folder / f"{path.replace('/', '_')}.xml"
    how = ("-p", "no:cacheprovider", "--tb=short", "--durations=5", f"--junitxml={report}")
    command = (sys.executable, "-m", "pytest", path, *marked, *how)
    return Part(path, command, limit, needs)


# Doing it


def run(part: Part, log: Any, seconds_left: float) -> Outcome:
    """The part's outcome; its processes are gone afterwards."""
    if reason := obstacle(part, seconds_left):
        return Outcome(part.name, "not done", detail=reason)
    started = time.monotonic()
    output, code = _output(part, min(part.limit, seconds_left))
    seconds = time.monotonic() - started
    log.write(f"\n===== {part.name}\n{output}")
    log.flush()
    outcome = Outcome(part.name, "passed" if code == 0 else "failed", seconds)
    if code is None:
        outcome.status, outcome.detail = "timed out", f"after {seconds:.0f} s"
    if part.tests:
        _read_tests(part, outcome)
    if outcome.bad:
        outcome.tail = "\n".join([*outcome.tail.splitlines(), *output.splitlines()[-TAIL_LINES:]])
    return outcome


def obstacle(part: Part, seconds_left: float) -> str:
    """Why the part cannot be done here; nothing if it can."""
    missing = [name for name in part.needs if not _importable(name)]
    if missing:
        return f"{', '.join(missing)} not installed"
    if gpu_count() < part.gpus:
        return f"needs {part.gpus} GPUs, there is {gpu_count()}"
    return "" if seconds_left >= LEAST_SECONDS else "no time left (--minutes)"


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package
        return False


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def _output(part: Part, limit: float) -> tuple[str, int | None]:
    """(what it printed, its exit code or None when it ran past the limit)."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it left running
        process.wait()
        printed.seek(0)
        return printed.read(), code


def _read_tests(part: Part, outcome: Outcome) -> None:
    """Counts and reasons from pytest's report."""
    path = Path(part.command[-1].removeprefix("--junitxml="))
    if not path.exists():
        return
    suite = next(ET.parse(path).getroot().iter("testsuite"))
    count = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    outcome.detail = f"{passed} of {count['tests']} tests passed"
    for case in suite.iter("testcase"):
        for skip in case.iter("skipped"):
            outcome.skipped.append(f"{case.get('name')}: {skip.get('message')}")
    outcome.tail = _failures(suite)
    if not outcome.bad and not passed:
        outcome.status, outcome.detail = (
            "not done",
            "; ".join(sorted({s.partition(": ")[2] for s in outcome.skipped})),
        )


def _failures(suite: ET.Element) -> str:
    """The ends of the first failures, one of each message."""
    shown: dict[str, str] = {}
    for case in suite.iter("testcase"):
        for failure in (*case.iter("failure"), *case.iter("error")):
            lines = (failure.text or "").strip().splitlines()[-FAILURE_LINES:]
            shown.setdefault((failure.get("message") or "")[:60], "\n".join([f"--- {case.get('name')}", *lines]))
    return "\n".join(list(shown.values())[:FAILURES_SHOWN])


# Telling it


def facts() -> dict[str, Any]:
    """Where this ran."""
    import torch

    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name,
        "gpus": gpu_count(),
        "memory_gib": round(device.total_memory / GIB, 1),
        "compute_capability": f"{device.major}.{device.minor}",
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def tables(where: dict[str, Any], outcomes: list[Outcome], numbers: dict[str, Any]) -> str:
    """All of it as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in where["libraries"].items() if version)
    absent = ", ".join(name for name, version in where["libraries"].items() if not version)
    lines = [
        f"{where['gpus']} x {where['gpu']} ({where['memory_gib']} GiB), CUDA {where['cuda']}, Python "
        f"{where['python']}, {versions}." + (f" Not installed: {absent}." if absent else ""),
        "",
        *_table(
            ("check", "result", "", "seconds"),
            [(o.name, o.status, o.detail, f"{o.seconds:.0f}") for o in outcomes],
        ),
    ]
    skipped = [f"- {o.name}: {each}" for o in outcomes for each in o.skipped]
    if skipped:
        lines += ["", "Tests that skipped themselves:", "", *skipped]
    if "vocab_parallel" in numbers:
        lines += ["", *_lm_head_table(numbers["vocab_parallel"])]
    if "actor" in numbers:
        lines += ["", *_actor_tables(numbers["actor"])]
    return "\n".join(lines) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|",
            *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]  # fmt: skip


def _lm_head_table(rows: list[dict[str, Any]]) -> list[str]:
    products = {(row["tokens"], row["columns"]): row for row in rows if row["name"] == "products"}
    cells = []
    for row in rows:
        bare = products[row["tokens"], row["columns"]]
        cells.append(
            (row["tokens"], row["columns"], row["name"], f"{row['forward_ms']:.2f}", f"{row['both_ms']:.2f}",
             f"{bare['both_ms'] / row['both_ms']:.2f}", f"{row['peak_mib']:.0f}" if "peak_mib" in row else "")
        )  # fmt: skip
    head = ("tokens", "columns", "what", "forward ms", "with backward ms", "of the products' rate", "peak MiB")
    return _table(head, cells)


def _actor_tables(figures: dict[str, Any]) -> list[str]:
    full, seconds = figures["full"], figures["seconds"]
    mfu = "unknown" if full["mfu"] is None else f"{full['mfu']:.3f}"
    return [
        f"Actor: {figures['shape']}; {figures['parts']}. Full microbatches of {figures['budget']} tokens: "
        f"{full['tokens_per_second']:.0f} tokens/s, {full['tflops']:.1f} TFLOP/s, MFU {mfu}; peak "
        f"{figures['peak_gib']:.1f} GiB.",
        "",
        *_table(
            ("contender", "seconds", "tokens/s without padding"),
            [(name, f"{value:.3f}", f"{figures['tokens_per_second'][name]:.0f}" if name != "full" else "")
             for name, value in seconds.items()],
        ),
        "",
        *_table(
            ("part of a full update", "ms"),
            [(name, f"{1000 * value:.1f}") for name, value in figures["seconds_by_part"].items()],
        ),
    ]  # fmt: skip


def show(outcome: Outcome) -> None:
    print(f"{outcome.status:9} {outcome.name} ({outcome.seconds:.0f} s) {outcome.detail}", flush=True)
    if outcome.tail:
        print("    " + outcome.tail.replace("\n", "\n    "), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=60.0, help="for everything (default: %(default)s)")
    parser.add_argument("--only", default="", help="parts whose name holds this text")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if importlib.util.find_spec("torch") is None:
        print(
            f"error: {sys.executable} has no torch; name another: make gpu-check GPU_PYTHON=PATH", file=sys.stderr
        )
        return 2
    import torch

    if not torch.cuda.is_available():
        print(
            f"error: torch {torch.__version__} of {sys.executable} finds no CUDA device, so nothing can be "
            "checked: run it where there is a GPU, by a Python with a CUDA build (make gpu-check GPU_PYTHON=PATH)",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    where, outcomes, numbers = facts(), [], {}
    print(json.dumps(where), flush=True)
    with tempfile.TemporaryDirectory() as made, (options.out / "gpu_check.log").open("w", encoding="utf-8") as log:
        folder = Path(made)
        for part in parts(folder, where["memory_gib"]):
            if options.only in part.name:
                outcomes.append(run(part, log, deadline - time.monotonic()))
                show(outcomes[-1])
                numbers = {
                    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")
                }
                _write(options.out, where, outcomes, numbers)  # what there is, should this be cut off
    print((options.out / "gpu_check.md").read_text(encoding="utf-8"))
    return int(any(outcome.bad for outcome in outcomes))


def _write(out: Path, where: dict[str, Any], outcomes: list[Outcome], numbers: dict[str, Any]) -> None:
    content = {"where": where, "outcomes": [asdict(outcome) for outcome in outcomes], "numbers": numbers}
    (out / "gpu_check.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (out / "gpu_check.md").write_text(tables(where, outcomes, numbers), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

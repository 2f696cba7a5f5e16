"""Time and memory of search over a large index, beside bm25s, as ratios of one run.

    python bench/retrieval.py --documents 100000
    python bench/retrieval.py --documents 1000000 --folder /scratch/retrieval

Makes a corpus of Zipf text (seeded), indexes it and asks for the best documents of queries of the same
distribution. Times are CPU times of the process, so that another's load does not count. Unique memory is what the
process alone holds (USS): of memory-mapped files it has the pages that were read and that no other process maps;
the kernel takes those back when it needs them. "private" is the rest, which it cannot take back.

bm25s is its own `retrieve` over the same lists, compiled by numba, on one thread.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from megatron_empg.environments.deep_search.search.bm25_index import SearchIndex
from megatron_empg.environments.deep_search.search.index_build import build_index

MIB = 1 << 20
PORTION = 10_000
Query = tuple[np.ndarray, np.ndarray]


class Zipf:
    """Words by Zipf's law: the i-th has a probability in proportion to 1 / i."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        weights = 1 / np.arange(1, vocabulary + 1)
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._rng = np.random.default_rng(seed)

    def draw(self, *shape: int) -> np.ndarray:
        return np.searchsorted(self._cumulative, self._rng.random(shape))


def write_corpus(path: Path, documents: int, words: int, vocabulary: int, seed: int) -> None:
    """One page of random words per line."""
    zipf = Zipf(vocabulary, seed)
    spelled = np.array([f"w{i}" for i in range(vocabulary)])
    with path.open("w", encoding="utf-8") as file:
        for first in range(0, documents, PORTION):
            drawn = spelled[zipf.draw(min(PORTION, documents - first), words)]
            for number, row in enumerate(drawn, start=first):
                file.write(json.dumps({"id": str(number), "contents": f"Page {number}\n{' '.join(row)}"}) + "\n")


def cpu_ms(work: Callable[[], Any]) -> float:
    """Milliseconds of CPU time of this process."""
    start = time.process_time()
    work()
    return (time.process_time() - start) * 1000


def percentiles(times: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(times, share)), 3) for name, share in (("p50", 50), ("p95", 95))}


def memory() -> dict[str, int]:
    """MiB of this process."""
    full = psutil.Process().memory_full_info()
    rolled = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    private = next(int(line.split()[1]) for line in rolled if line.startswith("Private_Dirty"))
    return {"unique": full.uss // MIB, "private": private // 1024}


def measure_open(folder: Path) -> dict[str, float]:
    """In a fresh process: its imports, then opening and the first query."""
    program = (
        "import json, sys, time; from pathlib import Path\n"
        "start = time.process_time()\n"
        "import numba, numpy\n"
        "from megatron_empg.environments.deep_search.search import max_score\n"
        "from megatron_empg.environments.deep_search.search.bm25_index import SearchIndex\n"
        "imported, wall = time.process_time(), time.perf_counter()\n"
        "index = SearchIndex.open(Path(sys.argv[1])); opened = time.process_time()\n"
        "opened_wall = time.perf_counter() - wall\n"
        "index.search('w1 w17 w4711'); first = time.process_time()\n"
        "print(json.dumps({'imports_s': imported - start, 'open_s': opened - imported,"
        " 'open_wall_s': opened_wall, 'first_query_s': first - opened}))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], check=True, capture_output=True, text=True)
    return {name: round(seconds, 3) for name, seconds in json.loads(done.stdout).items()}


def measure(index: SearchIndex, queries: list[str], top_k: int) -> dict[str, Any]:
    """The whole search, from the query's text to the documents' texts."""
    times = [cpu_ms(partial(index.search, query, top_k)) for query in queries]
    return {"cpu_ms": percentiles(times), "memory_mib": memory()}


def measure_scoring(index: SearchIndex, folder: Path, queries: list[Query], top_k: int) -> dict[str, Any]:
    """Only from word numbers to the best documents: ours and bm25s in turn, and whether they agree."""
    import bm25s

    plain = bm25s.BM25.load(folder, mmap=True, load_vocab=False, show_progress=False)
    plain.unique_token_ids_set = range(index.manifest.words)  # type: ignore[assignment]
    ours: list[float] = []
    theirs: list[float] = []
    differ = 0.0
    plain.retrieve([[0]], k=top_k, show_progress=False)  # compiles
    for words, counts in queries:
        spelled = np.repeat(words, counts.astype(np.int64)).tolist()
        retrieve = partial(plain.retrieve, [spelled], k=top_k, show_progress=False)
        theirs.append(cpu_ms(retrieve))
        ours.append(cpu_ms(partial(index.best, words, counts, top_k)))
        _, scores = index.best(words, counts, top_k)
        differ = max(differ, float(np.abs(retrieve().scores[0][: len(scores)] - scores).max(initial=0.0)))
    ratio = {name: round(percentiles(theirs)[name] / percentiles(ours)[name], 2) for name in ("p50", "p95")}
    return {
        "cpu_ms": percentiles(ours),
        "bm25s_cpu_ms": percentiles(theirs),
        "times_faster_than_bm25s": ratio,
        "largest_difference_of_scores": differ,
    }


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    corpus, out = folder / "corpus.jsonl", folder / "index"
    figures: dict[str, Any] = {"documents": arguments.documents}
    if not out.exists():
        write_corpus(corpus, arguments.documents, arguments.words, arguments.vocabulary, arguments.seed)
        seconds = (
            cpu_ms(lambda: build_index(corpus, out, progress=lambda line: print(line, file=sys.stderr))) / 1000
        )
        peak = next(
            int(line.split()[1]) // 1024
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        )
        figures["build"] = {"cpu_s": round(seconds, 1), "peak_resident_mib": peak}
        corpus.unlink()
    figures["open"] = measure_open(out)
    index = SearchIndex.open(out)
    figures["words"], figures["postings"] = index.manifest.words, index.manifest.postings
    figures["index_mib"] = sum(path.stat().st_size for path in out.iterdir()) // MIB
    drawn = Zipf(arguments.vocabulary, arguments.seed + 1).draw(arguments.queries, arguments.query_words)
    texts = [" ".join(f"w{word}" for word in row) for row in drawn]
    figures["search"] = measure(index, texts, arguments.top_k)
    figures["scoring"] = measure_scoring(index, out, [index.query_words(text) for text in texts], arguments.top_k)
    figures["memory_mib"] = memory()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=100, help="of a document")
    parser.add_argument("--vocabulary", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--query-words", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to keep the index in; a temporary one if not given")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(run(arguments, folder), indent=1))


if __name__ == "__main__":
    main()

"""A corpus of facts for tests that need questions and no certain ones: a share of the miniature's."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ROOT / "recipes/miniature/corpus.jsonl"


def write_small_corpus(path: Path, *, share: int = 3) -> Path:
    """Every so-manieth page, with its facts about texts and about other pages that are kept; returns the path."""
    pages = [json.loads(line) for line in WHOLE.read_text(encoding="utf-8").splitlines()]
    kept = pages[::share]
    known: set[tuple[str, str]] = set()
    while known != {(page["entity"], page["type"]) for page in kept}:
        known = {(page["entity"], page["type"]) for page in kept}
        kept = [page for page in (within(page, known) for page in kept) if page["facts"]]
    path.write_text("".join(json.dumps(page) + "\n" for page in kept), encoding="utf-8")
    return path


def within(page: dict[str, Any], known: set[tuple[str, str]]) -> dict[str, Any]:
    """The page with those of its facts that name no page but known ones."""
    told = zip(page["facts"], page["sentences"], strict=True)
    left = [(fact, sentence) for fact, sentence in told if fact[2] is None or (fact[1], fact[2]) in known]
    return page | {"facts": [fact for fact, _ in left], "sentences": [sentence for _, sentence in left]}

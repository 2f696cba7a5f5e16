"""docs/upstream.md says what the records say."""

import subprocess
import sys
from pathlib import Path

from megatron_empg.upstream.record import records

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_made_of_the_records() -> None:
    process = subprocess.run(
        [sys.executable, ROOT / "tools/upstream_page.py", "--check"], timeout=300, check=False
    )
    assert process.returncode == 0, "docs/upstream.md is out of date: python tools/upstream_page.py"


def test_every_record_has_its_line() -> None:
    page = (ROOT / "docs/upstream.md").read_text(encoding="utf-8")
    for record in records():
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{record.name}` |")]
        assert record.symptom in line
        assert record.can_go_when in line

"""A job on what `slurm/prepare.sh` leaves: published questions, an index, and the search server that serves it."""

import subprocess
import sys

import pytest

from tests.slurm.jobs import ROOT, Run

POLICY = ROOT / "tests/recipes/policies/instruct_tools"
"""Follows the instructions of `prompt: tools`; tests/recipes/policies/README.md says what it was taught."""
PREPARE = """
import sys
from pathlib import Path
from tests.recipes.prepared_miniature import prepare_miniature
prepare_miniature(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_job_trains_on_prepared_data(cluster, tmp_path):
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-c", PREPARE, str(data)], cwd=ROOT, check=True, timeout=120)
    run = Run(
        cluster, tmp_path,
        variables={"EMPG_MINIATURE": "0", "EMPG_DATA": str(data), "EMPG_MODEL": str(POLICY)},
        overrides={
            "run.steps": 1, "rollout.max_episode_tokens": 1024, "rollout.max_turn_tokens": 64,
            "environment.settings.prompt": "tools", "logging.episodes_per_step": 4, "evaluation.questions": 4,
        },
    )  # fmt: skip
    run.submit()
    job = run.end()
    assert (job.state, job.exit_code) == ("COMPLETED", 0)
    assert run.steps() == [0, 1]
    step = run.metrics[1]
    assert step["train/episodes_error"] == 0
    assert step["train/turns"] > 1, "the policy looked something up"
    assert "search service of deep_search at http://" in run.output
    logs = "".join(path.read_text(encoding="utf-8") for path in (run.folder / "logs").rglob("search.*"))
    assert "Traceback" not in logs
    episodes = "".join(path.read_text(encoding="utf-8") for path in (run.folder / "episodes").glob("*"))
    assert "found" in episodes, "the index was searched"

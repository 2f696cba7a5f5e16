"""Five steps of a recipe on its real engine, with vLLM and Megatron, equal the same steps in float64.

The recipes are the worlds' small ones, with fewer episodes a step; one is run with EMPG, so that its advantages
follow from the turns' entropies.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from megatron_empg.common.jsonl import read_lines
from megatron_empg.environments.scienceworld.java_installation import JavaInstallation
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.run.checkpoint_folders import step_folder
from megatron_empg.run.folder import RunFolder
from megatron_empg.weights.mapping.model_config import ModelConfig
from tests.environments.alfworld_engine import generate
from tests.environments.recorded_run import FOLDER, batch_file
from tests.environments.step_by_hand import Adam, HandMade, float64_model, give, step_by_hand, weights_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
SMALL = {
    "run.steps": STEPS,
    "run.checkpoint_every": 1,
    "run.keep_checkpoints": STEPS,
    "environment.max_turns": 8,
    "rollout.groups": 2,
    "rollout.group_size": 4,
    "rollout.concurrency": 8,
    "engines.kv_cache_gib": 0.0625,
    "algorithm.kl_to_initial_every": 0,
    "evaluation.questions": 0,
    "limits.environment_memory": 1.5,
    "logging.tensorboard": "false",
}
"""Every step's weights stay in a checkpoint."""
WITH_EMPG = {
    "algorithm.modulation": "empg",
    "algorithm.updates_per_batch": 2,
    "algorithm.masks.truncated": "false",
}


@dataclass(frozen=True)
class Recorded:
    """A run, and what its steps were trained on."""

    recipe: Recipe
    batches: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.recipe.run.folder)

    @cached_property
    def config(self) -> ModelConfig:
        return ModelConfig.from_folder(ROOT / self.recipe.model.path)

    def batch(self, step: int) -> Batch:
        return Batch.from_bytes(batch_file(self.batches, step).read_bytes())

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        """Those that the step began with; steps count from 0."""
        start = ROOT / self.recipe.model.path
        return weights_of(step_folder(self.folder.checkpoints, step) if step else start, self.config)

    def logged(self, step: int) -> dict[str, Any]:
        """What metrics.jsonl and steps.jsonl say of the step."""
        metrics, turns = read_lines(self.folder.metrics), read_lines(self.folder.steps)
        return {**metrics[step + 1], **turns[step]}


def run(name: str, folder: Path, **others: object) -> Recorded:
    """Train by a recipe of recipes/, made small."""
    path, batches = ROOT / f"recipes/{name}.yaml", folder / "batches"
    batches.mkdir()
    given = {**SMALL, "run.folder": folder / "run", **others}
    words = [f"{key}={value}" for key, value in given.items()]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", FOLDER: str(batches)}
    script = Path(__file__).with_name("recorded_run.py")
    done = subprocess.run(
        [sys.executable, script, path, *words],
        cwd=ROOT, env=variables, capture_output=True, encoding="utf-8", timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return Recorded(load_recipe(path, words), batches)


@pytest.fixture(scope="module")
def scienceworld_run(scienceworld: JavaInstallation, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """GRPO with EMPG. Of so few and short episodes a mask of the truncated ones would leave hardly any."""
    folder = tmp_path_factory.mktemp("scienceworld_reference")
    return run("scienceworld_miniature", folder, **WITH_EMPG)


@pytest.fixture(scope="module")
def alfworld_run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """DAPO, on games of the recipe's kind."""
    folder = tmp_path_factory.mktemp("alfworld_reference")
    games = folder / "games"
    generate(games, train=4, kinds="pick_and_place_simple", rooms="bathroom")
    return run("alfworld_miniature", folder, **{"environment.settings.data": games})


@pytest.fixture(scope="module")
def webshop_run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """DAPO over two data-parallel ranks. Its policy seldom has the full score, so that parts of it are earned."""
    folder = tmp_path_factory.mktemp("webshop_reference")
    return run("webshop_miniature", folder, **{"environment.settings.reward": "score"})


@pytest.fixture(params=["scienceworld_run", "alfworld_run", "webshop_run"])
def recorded(request: pytest.FixtureRequest) -> Recorded:
    """Each world's run."""
    return request.getfixturevalue(request.param)


def test_loss_and_entropies_of_real_steps_equal_the_reference(recorded: Recorded) -> None:
    """Turn entropies and advantages, the loss and its gradient's norm, and the weights behind each step.

    The tolerances are float32's, and of steps.jsonl its six digits. The second optimizer step of a batch has other
    weights than those that sampled it, so its loss follows from log-probs and gradients too.
    """
    recipe = recorded.recipe
    optimizer = recipe.actor.optimizer
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.weight_decay) == ("constant", 0, 0.0)
    assert recipe.algorithm.updates_per_batch == 2
    model, adam = float64_model(ROOT / recipe.model.path), Adam(optimizer)
    spread, moved = [], []
    for step in range(STEPS):
        batch, logged = recorded.batch(step), recorded.logged(step)
        if not batch.experience.samples:  # DAPO found no group whose rewards differ
            assert logged["train/idle"] == 1
            continue
        before, after = recorded.weights(step), recorded.weights(step + 1)
        give(model, before)
        made = step_by_hand(model, adam, batch, recipe, step)
        assert logged["train/idle"] == 0
        assert_equal(made, logged)
        assert (made.logprobs - batch.experience.rollout_logprobs).abs().max() < 1e-3, "vLLM's log-probs"
        assert distance(dict(model.named_parameters()), after) < 1e-3 * distance(before, after)
        spread.append(max(made.turn_entropies) - min(made.turn_entropies))
        moved.append(abs(made.loss))
    assert len(moved) >= 3, "too few steps had something to learn from"
    assert min(spread) > 0.1, "turns of equal entropy would tell nothing"
    assert max(moved) > 1e-3


def assert_equal(made: HandMade, logged: dict[str, Any]) -> None:
    """The step that was logged, and the one by hand."""
    assert logged["step_entropies"] == pytest.approx(made.turn_entropies, rel=1e-5, abs=1e-5)
    assert logged["trajectory_advantages"] == pytest.approx(made.trajectory_advantages, rel=1e-5, abs=1e-5)
    assert logged["step_advantages"] == pytest.approx(made.turn_advantages, rel=1e-5, abs=2e-5)
    assert logged["policy/loss"] == pytest.approx(made.loss, rel=1e-5, abs=1e-6)
    assert logged["policy/ratio"] == pytest.approx(made.ratio, rel=1e-6)
    assert logged["policy/clip_fraction"] == pytest.approx(made.clipped, abs=1e-9)
    assert logged["policy/update_entropy"] == pytest.approx(made.update_entropy, rel=1e-5)
    assert logged["policy/grad_norm_max"] == pytest.approx(max(made.gradient_norms), rel=1e-4)
    assert logged["policy/grad_norm"] == pytest.approx(mean(made.gradient_norms), rel=1e-4)


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of all tensors together."""
    squares = [float((some[name].detach() - others[name]).square().sum()) for name in others]
    return sum(squares) ** 0.5


def test_the_runs_take_the_paths_to_be_proved(
    scienceworld_run: Recorded, alfworld_run: Recorded, webshop_run: Recorded
) -> None:
    assert (scienceworld_run.recipe.algorithm.name, alfworld_run.recipe.algorithm.name) == ("grpo", "dapo")
    assert scienceworld_run.recipe.algorithm.modulation.name == "empg"
    assert (webshop_run.recipe.algorithm.name, webshop_run.recipe.actor.data_parallel) == ("dapo", 2)
    for recorded in (scienceworld_run, alfworld_run):
        assert recorded.recipe.actor.tensor_parallel == 2
    for recorded in (scienceworld_run, alfworld_run, webshop_run):
        batches = [recorded.batch(step) for step in range(STEPS)]
        turns = [len(sample.turns) for batch in batches for sample in batch.experience.samples]
        assert set(turns) == {1}, "each turn reads a prompt of its own"

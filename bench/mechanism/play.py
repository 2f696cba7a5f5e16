"""Batches of episodes of one policy, played by a real engine and a real rollout service, kept in a folder."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from pathlib import Path

from bench.mechanism.rows import rows
from megatron_empg.common.files import put_bytes, put_json
from megatron_empg.launch.engine_process import start_engine
from megatron_empg.launch.ports import free_port
from megatron_empg.recipe import Recipe, load_recipe
from megatron_empg.recipe.fingerprint import fingerprint_file
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.rollout_service import open_rollout_service

START_SECONDS = 600.0
ALL_GROUPS = ("algorithm.name=grpo", "algorithm.modulation=none")
"""GRPO keeps the groups of equal rewards too, so that DAPO's batches can be told from the same episodes."""


def recipe_of(path: Path, overrides: list[str], folder: Path) -> Recipe:
    """The recipe as it is played here. Raises SystemExit for one whose log-probs are of another temperature."""
    recipe = load_recipe(path, [*overrides, *ALL_GROUPS, f"run.folder={folder / 'run'}"])
    assert isinstance(recipe, Recipe)
    if recipe.rollout.temperature != 1.0:
        raise SystemExit(f"rollout.temperature is {recipe.rollout.temperature}; gradients are those at 1: give 1")
    return recipe


def policy_of(folder: Path) -> str:
    """SHA-256 of a policy's weights. Raises SystemExit unless they are one file."""
    found = fingerprint_file(folder / "model.safetensors")
    if found is None:
        raise SystemExit(
            f"{folder} has no model.safetensors: give a small policy, whose weights are that one file"
        )
    return found


def keep_identity(folder: Path, recipe: Recipe) -> None:
    """Note whose batches the folder has, and which updates its blocks hold. Raises SystemExit for batches of
    another recipe or policy, and blocks of other updates."""
    identity = {
        "policy": policy_of(recipe.model.path),
        "recipe": recipe.model_dump(mode="json"),
        "rows": [row.label for row in rows()],
    }
    path = folder / "identity.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        put_json(path, identity)
    elif json.loads(path.read_text(encoding="utf-8")) != identity:
        raise SystemExit(
            f"{folder} is of another recipe, policy or list of updates: give another --folder, or remove it"
        )


def batch_path(folder: Path, number: int) -> Path:
    """Where the batch of that number lies."""
    return folder / "batches" / f"{number:06d}.bin"


def read_batch(folder: Path, number: int) -> Batch:
    """Raises OSError where it was not played, ValueError where the file is none."""
    return Batch.from_bytes(batch_path(folder, number).read_bytes())


async def play(recipe: Recipe, folder: Path, batches: int, say: Callable[[str], None]) -> None:
    """Play those of the batches that are not there. What a batch is follows from `run.seed` and its number."""
    missing = [number for number in range(batches) if not batch_path(folder, number).exists()]
    if not missing:
        return
    batch_path(folder, 0).parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    engine = start_engine(
        recipe.model.path,
        port=free_port(),
        token=token,
        log_path=folder / "engine.log",
        max_model_len=recipe.rollout.max_episode_tokens,
        kv_cache_bytes=recipe.engines.kv_cache_bytes,
        max_num_seqs=recipe.rollout.concurrency,
    )
    try:
        engine.wait_healthy(START_SECONDS)
        async with open_rollout_service(recipe.service_config(), [engine.url], token) as service:
            for number in missing:
                put_bytes(batch_path(folder, number), await service.collect(number))
                if number % 10 == 9:
                    say(f"played {number + 1} of {batches} batches")
    finally:
        engine.stop()

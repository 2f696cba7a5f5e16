"""A run folder as a run of some steps leaves it, from made-up rollouts and the real modulation.

``python tests/unit/report/demo_run.py FOLDER`` writes one with its report, to look at.
"""

import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from megatron_empg.algorithms.empg import modulation
from megatron_empg.algorithms.grpo import group_advantages
from megatron_empg.report.page import write_report
from megatron_empg.run.episode_log import write_episodes, write_steps
from megatron_empg.run.episode_text import EpisodeRecord, EpisodeText, TurnNumbers, TurnText
from megatron_empg.run.folder import RunFolder
from megatron_empg.run.metrics import MetricsWriter

RECIPE = """\
run: {{folder: runs/demo, steps: {steps}, seed: 0}}
model: {{path: models/deep_search_small, dtype: float32}}
environment: {{name: deep_search, max_turns: 6}}
algorithm:
  name: grpo
  modulation: {modulation}
"""
EMPG = "{name: empg, k: 1.0, k_f: 1.0, zeta: 0.1, center: true}"
TURNS = (
    ("<think>I need the river that flows through the capital.</think>\n<search>capital of Bhutan</search>", 0.62),
    ("<think>Thimphu is named. I open it.</think>\n<visit>Thimphu</visit>", 0.21),
    ("<think>The page names a valley & a river, but which?</think>\n<search>Thimphu river valley</search>", 1.34),
    ("<think>The Wang Chhu.</think>\n<answer>Wang Chhu</answer>", 0.08),
)
PAGE = "Thimphu is the capital of Bhutan. It lies in the valley of the Wang Chhu, 2,320 metres above the sea. "


def write_demo(
    root: Path, *, steps: int = 40, modulated: bool = True, evaluated: bool = True, planned: int | None = None
) -> RunFolder:
    """Write metrics, steps and episodes of ``steps`` steps; no report."""
    recipe = RECIPE.format(steps=planned or steps, modulation=EMPG if modulated else "{name: none}")
    folder = RunFolder(root).open(recipe)
    writer = MetricsWriter(folder)
    chance = random.Random(0)
    for step in range(1, steps + 1):
        progress = step / 40
        batch = _batch(chance, progress, modulated)
        metrics = _metrics(chance, step, progress, batch)
        if modulated:
            metrics |= {
                "empg/h_norm_mean": float(batch["h_norm"].mean()),
                "empg/g_min": float(batch["g"].min()),
                "empg/g_max": float(batch["g"].max()),
                "empg/bonus_mean": float(batch["bonus"].mean()),
                "empg/advantage_mean": float(batch["final"].mean()),
            }
        if evaluated and (step == 1 or step % 10 == 0):
            metrics |= _evaluation(chance, progress)
        writer.write(step, metrics)
        write_steps(
            folder,
            step,
            step_entropies=batch["entropies"].tolist(),
            step_advantages=batch["final"].tolist(),
            trajectory_advantages=batch["advantages"].tolist(),
        )
        if step in (1, steps):
            write_episodes(folder, step, [_episode(step, True, modulated), _episode(step, False, modulated)])
    writer.close()
    folder.close()
    return folder


def _batch(chance: random.Random, progress: float, modulated: bool) -> dict[str, Any]:
    """Steps of 64 trajectories in groups of 8."""
    success = 0.28 + 0.4 * (1 - math.exp(-2 * progress))
    rewards = torch.tensor([float(chance.random() < success) for _ in range(64)])
    per_episode = group_advantages(rewards, torch.arange(64) // 8)
    lengths = [chance.choice((2, 3, 4, 4, 5)) for _ in range(64)]
    ids = torch.tensor([episode for episode, length in enumerate(lengths) for _ in range(length)])
    level = 0.25 + 0.5 * math.exp(-progress)
    entropies = torch.tensor([chance.gammavariate(1.6, level / 1.6) for _ in ids])
    advantages = per_episode[ids]
    if not modulated:
        nothing = torch.zeros_like(advantages)
        return {"rewards": rewards, "entropies": entropies, "advantages": advantages, "final": advantages} | {
            name: nothing for name in ("h_norm", "g", "bonus")
        }
    h_norm, g, bonus, final = modulation(advantages, entropies, ids)
    parts = {"h_norm": h_norm, "g": g, "bonus": bonus, "final": final}
    return {"rewards": rewards, "entropies": entropies, "advantages": advantages, **parts}


def _metrics(chance: random.Random, step: int, progress: float, batch: dict[str, Any]) -> dict[str, float]:
    names = {"min": 0.0, "q05": 0.05, "median": 0.5, "q95": 0.95, "max": 1.0}
    spread = {f"policy/step_entropy_{n}": float(batch["entropies"].quantile(q)) for n, q in names.items()}
    times = {"rollout": 2.4, "score": 0.5, "update": 1.3, "sync": 0.3, "other": 0.1}
    times = {name: mean * chance.uniform(0.85, 1.2) for name, mean in times.items()}
    times["evaluate"] = 3.0 if step % 10 == 0 else 0.0
    success = float(batch["rewards"].mean())
    metrics = {
        "policy_version": step,
        "train/reward": success,
        "train/success": success,
        "train/turns": 4.6 - progress * 0.8,
        "train/tokens_per_episode": 210 - 30 * progress + chance.gauss(0, 6),
        "train/episodes": 64,
        "train/groups_kept": 8 - chance.choice((0, 0, 1, 2)),
        "train/groups_dropped_equal": chance.choice((0, 0, 1, 2)),
        "train/groups_dropped_errors": 0,
        "train/malformed_actions": chance.choice((0, 1, 2)),
        "policy/entropy": float(batch["entropies"].mean()) * 0.8,
        "policy/approx_kl": abs(chance.gauss(4e-4, 1.5e-4)),
        "policy/clip_fraction": abs(chance.gauss(0.006, 0.002)),
        "policy/grad_norm": abs(chance.gauss(0.8, 0.15)),
        "policy/lr": 3e-4,
        "policy/logprob_gap_mean": abs(chance.gauss(4e-6, 1e-6)),
        "policy/logprob_gap_max": abs(chance.gauss(9e-5, 2e-5)),
        "time/step": sum(times.values()),
        "trainer/idle_share": times["rollout"] / sum(times.values()),
        "engine/idle_share_mean": chance.uniform(0.4, 0.5),
        "engine/idle_share_worst": chance.uniform(0.5, 0.6),
        "engine/tokens_per_second_mean": chance.gauss(4600, 100),
        "engine/tokens_per_second_worst": chance.gauss(4200, 100),
        "engine/waiting_mean": chance.uniform(0, 1),
        "engine/first_token_seconds_mean": chance.uniform(0.02, 0.03),
        "engine/cache_hit_share_mean": 0.64,
        "rollout/tail_ratio": chance.uniform(1.4, 1.9),
        "tokens_per_second": 64 * 200 / sum(times.values()),
    }
    if step % 5 == 0:
        metrics["policy/kl_to_initial"] = 0.06 * progress + chance.uniform(0, 0.004)
    return metrics | spread | {f"time/{name}": seconds for name, seconds in times.items()}


def _evaluation(chance: random.Random, progress: float) -> dict[str, float]:
    rise = 1 - math.exp(-2.2 * progress)
    metrics = {}
    for split, start, gain in (("test_id", 0.31, 0.36), ("test_ood", 0.22, 0.33)):
        metrics[f"eval/{split}/sampled"] = start + gain * rise + chance.uniform(-0.02, 0.02)
        metrics[f"eval/{split}/greedy"] = start + 0.42 + 0.03 * rise + chance.uniform(-0.01, 0.01)
        metrics[f"eval/{split}/sampled_questions"] = 200
    return metrics


def _episode(step: int, success: bool, modulated: bool) -> EpisodeRecord:
    taken = (
        TURNS if success else (*TURNS[:3], ("<think>It is a </think> guess.</think>\n<answer>Paro</answer>", 1.1))
    )
    advantage = 1.21 if success else -0.8
    parts = modulation(
        torch.full((len(taken),), advantage),
        torch.tensor([entropy for _, entropy in taken]),
        torch.zeros(len(taken), dtype=torch.long),
        center=False,
    )
    said, numbers = [], []
    for place, (text, entropy) in enumerate(taken):
        seen = "" if place == len(taken) - 1 else PAGE * (1 if place else 8)
        said.append(TurnText(text, seen))
        plain = TurnNumbers(entropy=entropy, advantage=advantage, tokens=24)
        if modulated:
            h_norm, g, bonus, final = (float(part[place]) for part in parts)
            plain = replace(plain, advantage=final, h_norm=h_norm, g=g, bonus=bonus)
        numbers.append(plain)
    outcome = "success" if success else "failure"
    question = "Which river flows through the capital of Bhutan?"
    return EpisodeRecord(
        step=step,
        text=EpisodeText("train-0172", question, outcome, said),
        reward=float(success),
        advantage=advantage,
        turns=numbers,
    )


if __name__ == "__main__":
    print(write_report(write_demo(Path(sys.argv[1])).root))

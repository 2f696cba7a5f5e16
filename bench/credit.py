"""What it costs to credit the turns of a batch, on one core: python bench/credit.py [--turns N].

Advantages of each algorithm, and factors of each modulation with their metrics, for random turns. Time is
that of the thread alone, so that other work on the machine does not count, the least and the median of the
repetitions; beside it stands what the same thread takes to sort as many float64 numbers.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from megatron_empg.algorithms.aem import Aem
from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.empg import Empg, modulation
from megatron_empg.algorithms.gigpo import Gigpo
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.gspo import Gspo
from megatron_empg.algorithms.normalization import Normalization
from megatron_empg.algorithms.reinforce_pp import ReinforcePP
from megatron_empg.algorithms.rloo import Rloo
from megatron_empg.algorithms.sampo import Sampo

TURNS_PER_EPISODE = 10
EPISODES_PER_QUESTION = 8
TURNS_PER_STATE = 20
NO_TOKENS = torch.empty(0)


@dataclass(frozen=True)
class Part:
    """Something that credits turns, and how many milliseconds it may take for 100,000 of them."""

    name: str
    credit: Callable[[], object]
    limit: float


def batch(turns: int) -> Experience:
    """Random rewards and states; tokens are left out, as no part below reads them."""
    generator = torch.Generator().manual_seed(0)
    episodes = turns // TURNS_PER_EPISODE
    rewards = torch.randint(0, 2, (episodes,), generator=generator).double()
    turn_rewards = torch.zeros(episodes, TURNS_PER_EPISODE, dtype=torch.float64)
    turn_rewards[:, -1] = rewards
    return Experience(
        rewards=rewards,
        groups=torch.arange(episodes) // EPISODES_PER_QUESTION,
        truncated=torch.zeros(episodes, dtype=torch.bool),
        episode_of_turn=torch.arange(episodes).repeat_interleave(TURNS_PER_EPISODE),
        turn_lengths=torch.ones(turns, dtype=torch.long),
        turn_rewards=turn_rewards.flatten(),
        anchors=torch.randint(0, turns // TURNS_PER_STATE, (turns,), generator=generator),
        cut=torch.zeros(turns, dtype=torch.bool),
        rollout_logprobs=NO_TOKENS,
        samples=[],
        episode_of_sample=torch.empty(0, dtype=torch.long),
    )


def parts(turns: int) -> list[Part]:
    """All of them; IGPO is left out, whose advantages are made of scores of tokens."""
    experience = batch(turns)
    generator = torch.Generator().manual_seed(1)
    entropies = torch.rand(turns, generator=generator, dtype=torch.float64)
    advantages = torch.randn(turns, generator=generator, dtype=torch.float64)
    found = []
    for section in (Grpo(), Dapo(), Rloo(), ReinforcePP(), Gspo(), Gigpo(), Sampo()):
        found.append(Part(section.name, lambda section=section: section.advantages(experience, []), 50))
    bare = lambda: modulation(advantages, entropies, experience.episode_of_turn)  # noqa: E731
    found.append(Part("EMPG, minmax, without metrics", bare, 5))
    limits: dict[Normalization, float] = {"minmax": 5, "quantile": 20, "rank": 20}
    for normalize, limit in limits.items():
        empg = Empg(normalize=normalize).make()
        modulate = lambda empg=empg: empg.modulate(advantages, entropies, experience)  # noqa: E731
        found.append(Part(f"EMPG, {normalize}", modulate, limit))
    aem = Aem().make()
    found.append(Part("AEM", lambda: aem.modulate(advantages, entropies, experience), 50))
    return found


def milliseconds(work: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """The least and the median of this thread's time; a first call does not count."""
    work()
    taken = []
    for _ in range(repetitions):
        began = time.thread_time()
        work()
        taken.append(1000 * (time.thread_time() - began))
    return min(taken), median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=30)
    arguments = parser.parse_args()
    if arguments.turns < TURNS_PER_STATE or arguments.turns % TURNS_PER_EPISODE:
        rule = f"it must be a multiple of {TURNS_PER_EPISODE}, at least {TURNS_PER_STATE}"
        parser.error(f"--turns is {arguments.turns}: {rule}")
    torch.set_num_threads(1)
    numbers = torch.rand(arguments.turns, dtype=torch.float64)
    sorting, _ = milliseconds(numbers.sort, arguments.repetitions)
    print(f"{arguments.turns} turns; to sort as many numbers takes {sorting:.1f} ms")
    print("| credit | least, ms | median, ms | of sorting | limit for 100,000, ms |")
    print("|---|---|---|---|---|")
    for part in parts(arguments.turns):
        least, middle = milliseconds(part.credit, arguments.repetitions)
        print(f"| {part.name} | {least:.1f} | {middle:.1f} | {least / sorting:.2f} | {part.limit:g} |")


if __name__ == "__main__":
    main()

"""Blocks of batches, measured: the sums of their updates, and what is known of every turn.

A block is written when it is whole and is not measured again, so that the work goes on after any end. Blocks are
also what is left out in turn for the errors of what is found.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bench.mechanism.gradients import TurnGradients
from bench.mechanism.play import read_batch
from bench.mechanism.rows import BINS, Weights, row_weights, rows
from megatron_empg.algorithms.base import Experience
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.grpo import group_relative
from megatron_empg.common.files import written_aside

BLOCK = 10
"""Batches of a block."""
AT_ONCE = 64
"""Gradients that are added to the sums together."""
MOST_OF_A_BATCH = 100_000
"""Episodes that a batch may have."""
Column = np.ndarray


@dataclass(frozen=True)
class TurnTable:
    """What is known of every turn, one number each."""

    entropy: Column
    """Mean entropy of its own tokens, in nats."""
    length: Column
    """Own tokens."""
    squared_norm: Column
    """Of its gradient."""
    reward: Column
    """Of its episode."""
    place: Column
    """Its number in its episode, from 0."""
    left: Column
    """Turns of its episode that come after it."""
    group: Column
    """Its question's number in its batch."""
    episode: Column
    """Its episode's number in its batch."""
    batch: Column
    state: Column
    """Names everything that the policy had read before it: equal numbers are equal texts."""
    scale: Column
    """EMPG's g by min-max and k 1, over all turns of the batch."""
    clarity: Column
    """EMPG's f of the turn after it by min-max and k_f 1; 0 at the last turn of an episode."""

    @property
    def question_of(self) -> Column:
        """Names each turn's question over all batches."""
        return self.batch * MOST_OF_A_BATCH + self.group

    @property
    def episode_of(self) -> Column:
        """Names each turn's episode over all batches."""
        return self.batch * MOST_OF_A_BATCH + self.episode

    @classmethod
    def joined(cls, tables: list[TurnTable]) -> TurnTable:
        """The turns of all the tables."""
        columns = {}
        for one in fields(cls):
            columns[one.name] = np.concatenate([getattr(table, one.name) for table in tables])
        return cls(**columns)


@dataclass(frozen=True)
class Block:
    """A measured block."""

    sums: Float[np.ndarray, "rows dimensions"]
    """Of each row's updates over the batches."""
    squares: Float[np.ndarray, "rows dimensions"]
    """Of the updates' squares, number by number."""
    grams: Float[np.ndarray, "batches rows rows"]
    """Inner products of the updates of one batch."""
    turns: TurnTable


def block_path(folder: Path, number: int) -> Path:
    """Where the block of that number lies."""
    return folder / "blocks" / f"{number:03d}.npz"


def measure_block(folder: Path, number: int, gradients: TurnGradients, edges: Tensor) -> None:
    """Measure a block's batches, and write it."""
    shape = (len(rows()), gradients.dimensions)
    sums, squares = torch.zeros(shape), torch.zeros(shape)
    grams, tables = [], []
    for batch in range(number * BLOCK, (number + 1) * BLOCK):
        experience = read_batch(folder, batch).experience
        entropies = experience.turn_means(gradients.score(experience.samples).entropies)
        weights = row_weights(experience, entropies, edges)
        updates, norms = _updates(experience, weights, gradients)
        sums += updates
        squares += updates.square()
        grams.append((updates @ updates.T).double().numpy())
        tables.append(_table(experience, entropies, norms, batch))
    block = Block(sums.numpy(), squares.numpy(), np.stack(grams), TurnTable.joined(tables))
    write_block(block_path(folder, number), block)


def _updates(
    experience: Experience, weights: Float[Tensor, "rows turns"], gradients: TurnGradients
) -> tuple[Float[Tensor, "rows dimensions"], Weights]:
    """The update of each row, and the squared norm of each turn's gradient."""
    updates = torch.zeros(len(weights), gradients.dimensions)
    norms: list[Tensor] = []
    held: list[Tensor] = []

    def add_held() -> None:
        matrix = torch.stack(held)
        norms.append(matrix.square().sum(1).double())
        first = sum(len(part) for part in norms) - len(held)
        updates.addmm_(weights[:, first : first + len(held)].float(), matrix)
        held.clear()

    for gradient in gradients.of_turns(experience.samples):
        held.append(gradient)
        if len(held) == AT_ONCE:
            add_held()
    if held:
        add_held()
    return updates, torch.cat(norms)


def _table(experience: Experience, entropies: Tensor, norms: Tensor, batch: int) -> TurnTable:
    episode_of_turn, place = experience.episode_of_turn, experience.place_of_turn
    turns = episode_of_turn.bincount(minlength=len(experience.rewards))
    advantages = group_relative(experience, normalize_std=True).turns
    modulated = Empg(zeta=1.0).make().modulate(advantages, entropies, experience)
    return TurnTable(
        entropy=entropies.numpy(),
        length=experience.turn_lengths.numpy(),
        squared_norm=norms.numpy(),
        reward=experience.rewards[episode_of_turn].double().numpy(),
        place=place.numpy(),
        left=(turns[episode_of_turn] - 1 - place).numpy(),
        group=experience.groups[episode_of_turn].numpy(),
        episode=episode_of_turn.numpy(),
        batch=np.full(len(place), batch, dtype=np.int64),
        state=_states(experience),
        scale=modulated.scale.double().numpy(),
        clarity=modulated.bonus.double().numpy(),
    )


def _states(experience: Experience) -> Int[np.ndarray, "turns"]:
    names = []
    for sample in experience.samples:
        tokens = sample.tokens.to(torch.int32).numpy()
        for start in sample.turns[:, 0].tolist():
            digest = hashlib.blake2b(tokens[:start].tobytes(), digest_size=7).digest()
            names.append(int.from_bytes(digest, "little"))
    return np.array(names, dtype=np.int64)


def bin_edges(folder: Path, gradients: TurnGradients) -> Float[Tensor, "inner_edges"]:
    """Entropies that part the turns of the first block's batches into bins of as many turns each."""
    entropies = []
    for batch in range(BLOCK):
        experience = read_batch(folder, batch).experience
        entropies.append(experience.turn_means(gradients.score(experience.samples).entropies))
    shares = torch.arange(1, BINS, dtype=torch.float64) / BINS
    return torch.cat(entropies).quantile(shares)


def write_block(path: Path, block: Block) -> None:
    """Write it aside, and put it in its place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {f"turns_{one.name}": getattr(block.turns, one.name) for one in fields(TurnTable)}
    with written_aside(path, durable=False) as aside, aside.open("wb") as file:
        np.savez(file, sums=block.sums, squares=block.squares, grams=block.grams, **columns)


def read_block(path: Path) -> Block:
    """Raises OSError, and ValueError for another file."""
    with np.load(path, allow_pickle=False) as file:
        columns = {one.name: file[f"turns_{one.name}"] for one in fields(TurnTable)}
        return Block(file["sums"], file["squares"], file["grams"], TurnTable(**columns))

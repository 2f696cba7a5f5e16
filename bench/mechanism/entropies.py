"""Turn entropies: how they are spread, which gradients and noise are theirs, whether clarity says success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.mechanism.blocks import TurnTable
from bench.mechanism.products import Estimate, Products, half_width
from bench.mechanism.rows import BINS
from bench.mechanism.updates import BIN_NUMBERS, SUCCESS

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Spread:
    """How entropies are spread over the turns."""

    quantiles: list[float]
    """In nats, at `QUANTILES`."""
    by_place: list[float]
    """Mean entropy of first turns, second turns and so on, up to the place that a tenth of the episodes has."""
    of_last: float
    """Mean entropy of the turns that end an episode."""
    g_low: float
    """EMPG's factor g by min-max and k 1 at the 5% quantile of the turns."""
    g_high: float
    """At their 95% quantile."""
    g_near_one: float
    """Share of the turns with a g from 0.9 to 1.1."""


def spread_of(turns: TurnTable) -> Spread:
    """Over all turns of all batches."""
    episodes = len(np.unique(turns.episode_of))
    by_place = []
    for place in range(int(turns.place.max()) + 1):
        there = turns.place == place
        if there.sum() < episodes / 10:
            break
        by_place.append(float(turns.entropy[there].mean()))
    low, high = np.quantile(turns.scale, (0.05, 0.95))
    near_one = (turns.scale >= 0.9) & (turns.scale <= 1.1)
    return Spread(
        quantiles=np.quantile(turns.entropy, QUANTILES).tolist(),
        by_place=by_place,
        of_last=float(turns.entropy[turns.left == 0].mean()),
        g_low=float(low),
        g_high=float(high),
        g_near_one=float(near_one.mean()),
    )


@dataclass(frozen=True)
class BinFindings:
    """The turns of one bin of entropy, the surest first."""

    entropy: float
    """Their mean, in nats."""
    turns: float
    """Share of all turns."""
    success: float
    """Mean reward of their episodes."""
    squared_norm: float
    """Mean of the squared norm of a turn's gradient, by its number of own tokens."""
    g: float
    """Mean of EMPG's g by min-max and k 1."""
    gain: Estimate
    """Share of the plain DAPO update's gain in success that comes from these turns."""
    noise: float
    """Share of the variance of the plain DAPO update, were the bins' independent."""
    signal_by_noise: Estimate
    """Squared norm of the expectation of these turns' part of the update, by the variance around it."""


def bins_of(turns: TurnTable, edges: Sequence[float], products: Products) -> list[BinFindings]:
    """All bins."""
    number_of_turn = np.searchsorted(np.asarray(edges), turns.entropy, side="left")
    gains, gain_errors = products.jackknife(lambda chosen: _gain_shares(products, chosen))
    signals, signal_errors = products.jackknife(lambda chosen: _signal_by_noise(products, chosen))
    everything = list(range(products.count))
    variance = _variances(products, everything)
    found = []
    for number in range(BINS):
        there = number_of_turn == number
        found.append(
            BinFindings(
                entropy=float(turns.entropy[there].mean()),
                turns=float(there.mean()),
                success=float(turns.reward[there].mean()),
                squared_norm=float((turns.squared_norm[there] / turns.length[there]).mean()),
                g=float(turns.scale[there].mean()),
                gain=Estimate(float(gains[number]), float(gain_errors[number])),
                noise=float(variance[number] / variance.sum()),
                signal_by_noise=Estimate(float(signals[number]), float(signal_errors[number])),
            )
        )
    return found


def _variances(products: Products, chosen: list[int]) -> np.ndarray:
    spent = products.of_updates(chosen) - products.of_means(chosen)
    return spent[BIN_NUMBERS, BIN_NUMBERS]


def _gain_shares(products: Products, chosen: list[int]) -> np.ndarray:
    gains = products.of_means(chosen)[BIN_NUMBERS, SUCCESS]
    return gains / gains.sum()


def _signal_by_noise(products: Products, chosen: list[int]) -> np.ndarray:
    signal = products.of_means(chosen)[BIN_NUMBERS, BIN_NUMBERS]
    return signal / _variances(products, chosen)


@dataclass(frozen=True)
class Correlations:
    """All but the first are within questions, or within states, so that easy questions do not count; the intervals
    are by the jackknife over batches."""

    norm_and_entropy: float
    """Rank correlation of a turn's entropy with the squared norm of its gradient by own tokens, over all turns."""
    entropy_and_success: Estimate
    """A turn's entropy and its episode's reward, among turns that have read the same."""
    clarity_and_success: Estimate
    """EMPG's f of the next turn and the episode's reward, among turns that have read the same: what the bonus pays
    for, given the state."""
    clarity_and_success_in_question: Estimate
    """The same among all turns of a question's episodes."""
    episode_bonus_and_success: Estimate
    """An episode's sum of f and its reward, among a question's episodes."""
    turns_and_success: Estimate
    """An episode's number of turns and its reward, among a question's episodes."""
    same_state: float
    """Share of the turns with a next one that have read what another has."""


def correlations_of(turns: TurnTable) -> Correlations:
    """Over all batches."""
    question = turns.question_of
    pays = turns.left > 0
    states = _numbered(question, turns.state)
    firsts = turns.place == 0
    episode = turns.episode_of
    _, episode_of_turn = np.unique(episode, return_inverse=True)
    paid = np.bincount(episode_of_turn, turns.clarity)
    count = np.bincount(episode_of_turn).astype(float)
    # Turns lie by episode, so that first turns are in the order of the episodes' numbers.
    by_episode = np.argsort(episode[firsts], kind="stable")
    reward, batch = turns.reward[firsts][by_episode], turns.batch[firsts][by_episode]
    of_question = question[firsts][by_episode]
    within = _counts(states[pays])
    return Correlations(
        norm_and_entropy=_rank_correlation(turns.entropy, turns.squared_norm / turns.length),
        entropy_and_success=_within(turns.entropy, turns.reward, states, turns.batch),
        clarity_and_success=_within(turns.clarity[pays], turns.reward[pays], states[pays], turns.batch[pays]),
        clarity_and_success_in_question=_within(
            turns.clarity[pays], turns.reward[pays], question[pays], turns.batch[pays]
        ),
        episode_bonus_and_success=_within(paid, reward, of_question, batch),
        turns_and_success=_within(count, reward, of_question, batch),
        same_state=float((within > 1).mean()),
    )


def _numbered(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Equal pairs get equal numbers."""
    _, numbers = np.unique(np.stack([first, second]), axis=1, return_inverse=True)
    return numbers.reshape(-1)


def _counts(cells: np.ndarray) -> np.ndarray:
    """How many are in each one's cell."""
    _, index, counts = np.unique(cells, return_inverse=True, return_counts=True)
    return counts[index.reshape(-1)]


def _within(x: np.ndarray, y: np.ndarray, cells: np.ndarray, batch: np.ndarray) -> Estimate:
    """Pooled correlation inside cells: of what x and y differ from their cells' means by."""
    _, cell, counts = np.unique(cells, return_inverse=True, return_counts=True)
    cell = cell.reshape(-1)
    x = x - (np.bincount(cell, x) / counts)[cell]
    y = y - (np.bincount(cell, y) / counts)[cell]
    size = int(batch.max()) + 1
    sums = np.stack([np.bincount(batch, product, minlength=size) for product in (x * y, x * x, y * y)])
    total = sums.sum(1)
    parts = _correlation(total[:, None] - sums)
    return Estimate(float(_correlation(total)), float(half_width(parts)))


def _correlation(sums: np.ndarray) -> np.ndarray:
    both, of_x, of_y = sums
    return both / np.sqrt(np.maximum(of_x * of_y, 1e-300))


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    ranks = [values.argsort().argsort() for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])

"""What modulation does to an update: its size, its direction, its noise, and what a step of it gains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.mechanism.blocks import Block
from bench.mechanism.products import Estimate, Products, half_width
from bench.mechanism.rows import BINS, MODULATIONS, PLAIN, TRUTH, Base, Row, bin_name, rows

NUMBER = {row: number for number, row in enumerate(rows())}
SUCCESS = NUMBER[Row(None, TRUTH)]
BIN_NUMBERS = [NUMBER[Row("dapo", bin_name(number))] for number in range(BINS)]


@dataclass(frozen=True)
class UpdateFindings:
    """Of one modulation over one base, each beside the plain update of that base."""

    base: Base
    name: str
    size: Estimate
    """Root mean square norm of a batch's update, by that of the plain one."""
    cosine: Estimate
    """Mean cosine of a batch's update to the plain one of the same batch."""
    expected_cosine: Estimate | None
    """Cosine of the expected update to the plain expected one. None where noise hides the expectation."""
    signal: Estimate | None
    """Squared norm of the expected update by the variance around it, of one batch; by the plain one's. None where
    noise hides the expectation."""
    gain: Estimate
    """First-order gain in success by a step of given norm, by that of the plain update."""
    gain_by_adam: Estimate
    """The same by a step of Adam's, which gives every number of the update the same size."""


def update_findings(blocks: Sequence[Block], products: Products) -> list[UpdateFindings]:
    """Of every modulation over both bases, the plain ones first."""
    cosines = _batch_cosines(blocks)
    found = []
    for base in ("dapo", "grpo"):
        plain = NUMBER[Row(base, PLAIN)]
        for name in MODULATIONS:
            row = NUMBER[Row(base, name)]
            found.append(
                UpdateFindings(
                    base,
                    name,
                    size=_known(_by(products, _size, row, plain)),
                    cosine=_mean_over_blocks(cosines[:, row, plain]),
                    expected_cosine=_by(products, _direction, row, plain),
                    signal=_by(products, _signal, row, plain),
                    gain=_known(_by(products, _gain, row, plain)),
                    gain_by_adam=_adam_gain(products, row, plain),
                )
            )
    return found


Number = Callable[[Products, list[int], int, int], float]
"""Of the chosen blocks, of a row and of the plain one."""


def _by(products: Products, number: Number, row: int, plain: int) -> Estimate | None:
    """None where the number is not finite, of all blocks or with one left out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        whole, half = products.jackknife(lambda chosen: np.array(number(products, chosen, row, plain)))
    if not np.isfinite(whole) or not np.isfinite(half):
        return None
    return Estimate(float(whole), float(half))


def _known(estimate: Estimate | None) -> Estimate:
    assert estimate is not None, "a norm of noisy updates is never 0"
    return estimate


def _size(products: Products, chosen: list[int], row: int, plain: int) -> float:
    updates = products.of_updates(chosen)
    return float(np.sqrt(updates[row, row] / updates[plain, plain]))


def _direction(products: Products, chosen: list[int], row: int, plain: int) -> float:
    means = products.of_means(chosen)
    # A squared norm without its noise may come out below 0.
    return float(np.divide(means[row, plain], np.sqrt(max(means[row, row], 0) * max(means[plain, plain], 0))))


def _signal(products: Products, chosen: list[int], row: int, plain: int) -> float:
    means, updates = products.of_means(chosen), products.of_updates(chosen)
    by_row = means[row, row] / (updates[row, row] - means[row, row])
    by_plain = max(means[plain, plain], 0) / (updates[plain, plain] - means[plain, plain])
    return float(np.divide(by_row, by_plain))


def _gain(products: Products, chosen: list[int], row: int, plain: int) -> float:
    means, updates = products.of_means(chosen), products.of_updates(chosen)
    by_row = means[row, SUCCESS] / np.sqrt(updates[row, row])
    by_plain = means[plain, SUCCESS] / np.sqrt(updates[plain, plain])
    return float(by_row / by_plain)


def _adam_gain(products: Products, row: int, plain: int) -> Estimate:
    whole = products.by_adam(None)
    parts = np.array([products.by_adam(left) for left in range(products.count)])
    return Estimate(float(whole[row] / whole[plain]), float(half_width(parts[:, row] / parts[:, plain])))


def _batch_cosines(blocks: Sequence[Block]) -> np.ndarray:
    """Mean over each block's batches of the cosines of the rows' updates, [blocks, rows, rows]."""
    found = []
    for block in blocks:
        norms = np.sqrt(np.diagonal(block.grams, axis1=1, axis2=2))
        scale = np.where(norms > 0, norms, np.inf)
        found.append((block.grams / scale[:, :, None] / scale[:, None, :]).mean(0))
    return np.stack(found)


def _mean_over_blocks(values: np.ndarray) -> Estimate:
    parts = np.array([np.delete(values, left).mean() for left in range(len(values))])
    return Estimate(float(values.mean()), float(half_width(parts)))


@dataclass(frozen=True)
class BestScaling:
    """The factors of the entropy bins by which a step of given norm gains most, and how much."""

    factors: list[float]
    """Their mean over bins is 1."""
    gain: float
    """By the plain update's, on the very batches that the factors were found on: too good."""
    gain_elsewhere: float
    """By the plain update's, where factors are found on half of the blocks and tried on the other, both ways."""


def best_scaling(products: Products) -> BestScaling:
    """Of all scalings of turns by their entropy's bin."""
    everything = list(range(products.count))
    halves = everything[::2], everything[1::2]
    elsewhere = []
    for found_on, tried_on in (halves, halves[::-1]):
        elsewhere.append(_bins_gain(products, tried_on, _best_factors(products, found_on)))
    factors = _best_factors(products, everything)
    gain = _bins_gain(products, everything, factors)
    return BestScaling((factors / factors.mean()).tolist(), gain, float(np.mean(elsewhere)))


def _best_factors(products: Products, chosen: list[int]) -> np.ndarray:
    """Those w that make wᵀμ / sqrt(wᵀSw) greatest: S⁻¹μ."""
    gains = products.of_means(chosen)[BIN_NUMBERS, SUCCESS]
    updates = products.of_updates(chosen)[np.ix_(BIN_NUMBERS, BIN_NUMBERS)]
    return np.linalg.solve(updates, gains)


def _bins_gain(products: Products, chosen: list[int], factors: np.ndarray) -> float:
    gains = products.of_means(chosen)[BIN_NUMBERS, SUCCESS]
    updates = products.of_updates(chosen)[np.ix_(BIN_NUMBERS, BIN_NUMBERS)]
    ones = np.ones(BINS)
    plain = gains @ ones / np.sqrt(ones @ updates @ ones)
    return float(gains @ factors / np.sqrt(factors @ updates @ factors) / plain)

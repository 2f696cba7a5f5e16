"""The algorithms once more, as loops over plain numbers, written from the papers' equations alone.

Nothing here is shared with the package but the carriers that `episodes_of` reads: no tensors, no vectorised
statistics, Python's float64 throughout. Slow and plain on purpose: each line is to be compared with an equation.

Papers: GRPO arXiv 2402.03300, Dr. GRPO 2503.20783, DAPO 2503.14476, RLOO 2402.14740, REINFORCE++ 2501.03262, GSPO
2507.18071, GiGPO 2505.10978, SAMPO (ARLArena) 2602.21534, IGPO 2510.14967, EMPG 2509.09265, AEM 2605.00425, EPO
2509.22576, dual clip 1912.09729, estimators of a KL: Schulman, joschu.net/blog/kl-approx.html.
"""

import itertools
import math
from dataclasses import dataclass, field

from megatron_empg.algorithms.base import Experience, Scores


@dataclass(frozen=True)
class Turn:
    """One act of the agent: what is known of its own tokens, and what the environment said of it."""

    reward: float
    anchor: int
    cut: bool
    logprobs: list[float]
    """The actor's, before the update."""
    entropies: list[float]
    rollout_logprobs: list[float]

    @property
    def tokens(self) -> int:
        return len(self.logprobs)

    @property
    def entropy(self) -> float:
        """H_t: the mean over the turn's own tokens."""
        return mean(self.entropies)


@dataclass(frozen=True)
class Episode:
    group: int
    reward: float
    truncated: bool
    turns: list[Turn]
    samples: list[int] = field(default_factory=list)
    """Turns in each of the token sequences that the episode was cut into."""

    @property
    def tokens(self) -> int:
        return sum(turn.tokens for turn in self.turns)


Batch = list[Episode]
ByTurn = list[list[float]]
"""A number for each turn of each episode."""


def episodes_of(experience: Experience, scores: Scores) -> Batch:
    """The same batch as nested lists."""
    lengths = experience.turn_lengths.tolist()
    starts = [sum(lengths[:turn]) for turn in range(len(lengths))]
    batch = []
    for number in range(len(experience.rewards)):
        turns = []
        for turn, owner in enumerate(experience.episode_of_turn.tolist()):
            if owner == number:
                own = slice(starts[turn], starts[turn] + lengths[turn])
                turns.append(
                    Turn(
                        reward=experience.turn_rewards[turn].item(),
                        anchor=experience.anchors[turn].item(),
                        cut=experience.cut[turn].item(),
                        logprobs=scores.logprobs[own].tolist(),
                        entropies=scores.entropies[own].tolist(),
                        rollout_logprobs=experience.rollout_logprobs[own].tolist(),
                    )
                )
        samples = []
        for sample, owner in zip(experience.samples, experience.episode_of_sample.tolist(), strict=True):
            if owner == number:
                samples.append(len(sample.turns))
        batch.append(
            Episode(
                group=experience.groups[number].item(),
                reward=experience.rewards[number].item(),
                truncated=experience.truncated[number].item(),
                turns=turns,
                samples=samples,
            )
        )
    return batch


def flat(by_turn: list[list]) -> list:
    """Turns laid end to end."""
    laid = []
    for turns in by_turn:
        laid.extend(turns)
    return laid


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def unbiased_std(values: list[float]) -> float:
    """With n - 1: what torch.std is by default, and so the released code of GRPO, GiGPO and others."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def population_std(values: list[float]) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values))


def by_group(batch: Batch) -> dict[int, list[int]]:
    """The episodes of each question."""
    members: dict[int, list[int]] = {}
    for number, episode in enumerate(batch):
        members.setdefault(episode.group, []).append(number)
    return members


def on_turns(batch: Batch, advantages: list[float]) -> ByTurn:
    """An episode's advantage at each of its turns: Â_{i,t} = Â_i."""
    return [[advantage] * len(episode.turns) for episode, advantage in zip(batch, advantages, strict=True)]


# Advantages


def grpo(batch: Batch, *, divide_by_std: bool = True, eps: float = 1e-6) -> list[float]:
    """GRPO, section 4.1.2: Â_i = (R_i - mean(R)) / std(R). Dr. GRPO: without the division.

    Released code of verl: a lone episode has mean 0 and std 1, hence Â = R / (1 + eps).
    """
    advantages = [0.0] * len(batch)
    for members in by_group(batch).values():
        rewards = [batch[number].reward for number in members]
        centre = mean(rewards) if len(rewards) > 1 else 0.0
        spread = unbiased_std(rewards) if len(rewards) > 1 else 1.0
        for number in members:
            difference = batch[number].reward - centre
            advantages[number] = difference / (spread + eps) if divide_by_std else difference
    return advantages


def dapo_keeps(rewards: list[float]) -> bool:
    """DAPO, eq. 11: 0 < |{o_i that are right}| < G: a group whose rewards are all equal teaches nothing."""
    return any(reward != rewards[0] for reward in rewards)


def overlong_shaping(length: int, *, longest: int, buffer: int, penalty: float) -> float:
    """DAPO, eq. 13, times a penalty: 0 up to L_max - L_cache, then linear down to -1 at L_max, -1 beyond."""
    if length <= longest - buffer:
        return 0.0
    if length <= longest:
        return penalty * ((longest - buffer) - length) / buffer
    return -penalty


def rloo(batch: Batch) -> list[float]:
    """RLOO: R_i - 1/(n-1) · sum of the others' R. A lone episode has no others: released code gives R."""
    advantages = [0.0] * len(batch)
    for members in by_group(batch).values():
        for number in members:
            others = [batch[other].reward for other in members if other != number]
            baseline = mean(others) if others else 0.0
            advantages[number] = batch[number].reward - baseline
    return advantages


def discounted_returns(rewards: list[float], gamma: float) -> list[float]:
    """R_t = sum over k >= t of gamma^(k-t) · r_k: GiGPO, eq. 5."""
    returns = []
    for start in range(len(rewards)):
        returns.append(math.fsum(gamma ** (k - start) * rewards[k] for k in range(start, len(rewards))))
    return returns


def reinforce_pp(batch: Batch, *, gamma: float, eps: float = 1e-8, weigh_by_tokens: bool = True) -> ByTurn:
    """REINFORCE++: discounted returns, A_norm = (A - mean over the batch) / std over the batch.

    Released code of verl whitens over tokens: mean and unbiased variance over all own tokens, /sqrt(var + eps).
    """
    returns = [discounted_returns([turn.reward for turn in episode.turns], gamma) for episode in batch]
    pool = []
    for episode, values in zip(batch, returns, strict=True):
        for turn, value in zip(episode.turns, values, strict=True):
            pool.extend([value] * (turn.tokens if weigh_by_tokens else 1))
    if len(pool) < 2:
        return [[0.0 for _ in values] for values in returns]
    centre, spread = mean(pool), math.sqrt(unbiased_std(pool) ** 2 + eps)
    return [[(value - centre) / spread for value in values] for values in returns]


def gigpo(batch: Batch, *, gamma: float, omega: float, divide_by_std: bool = True, eps: float = 1e-6) -> ByTurn:
    """GiGPO, eq. 8: A = A^E + omega · A^S."""
    outcome = grpo(batch, divide_by_std=divide_by_std, eps=eps)  # eq. 3
    returns = [discounted_returns([turn.reward for turn in episode.turns], gamma) for episode in batch]  # eq. 5
    states: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, episode in enumerate(batch):  # eq. 6: the same anchor state in the same question
        for place, turn in enumerate(episode.turns):
            states.setdefault((episode.group, turn.anchor), []).append((number, place))
    advantages = [[0.0] * len(episode.turns) for episode in batch]
    for visits in states.values():
        pool = [returns[number][place] for number, place in visits]
        spread = unbiased_std(pool) if len(pool) > 1 else 1.0
        for number, place in visits:
            step = returns[number][place] - mean(pool)  # eq. 7; of a lone visit 0
            if divide_by_std:
                step = step / (spread + eps)
            advantages[number][place] = outcome[number] + omega * step
    return advantages


def gold_value(logprobs: list[float], *, in_nats: bool) -> float:
    """How much the policy believes in the gold answer: exp(mean log p), or mean log p (IGPO's released code)."""
    believed = mean(logprobs)
    return believed if in_nats else math.exp(believed)


def igpo(
    batch: Batch,
    gold_logprobs: list[list[list[float]]],
    *,
    gamma: float,
    in_nats: bool,
    divide_by_std: bool = True,
    eps: float = 1e-6,
) -> ByTurn:
    """IGPO: a turn earns the gain of the gold answer's probability from before to after it, the last the outcome.

    ``gold_logprobs``: by episode and turn, the log-probs of the gold answer's tokens where that turn begins. All
    rewards of a question's turns are normalised together, then A_t = sum over k >= t of gamma^(k-t) · r̃_k.
    """
    rewards = []
    for episode, by_turn in zip(batch, gold_logprobs, strict=True):
        beliefs = [gold_value(logprobs, in_nats=in_nats) for logprobs in by_turn]
        gains = [after - before for before, after in itertools.pairwise(beliefs)]
        rewards.append([*gains, episode.reward])
    advantages = [[0.0] * len(episode.turns) for episode in batch]
    for members in by_group(batch).values():
        pool = flat([rewards[number] for number in members])
        centre = mean(pool)
        spread = unbiased_std(pool) if len(pool) > 1 else 1.0
        for number in members:
            normalised = [reward - centre for reward in rewards[number]]
            if divide_by_std:
                normalised = [difference / (spread + eps) for difference in normalised]
            advantages[number] = discounted_returns(normalised, gamma)
    return advantages


# Modulations


def weighted_mean(values: list[float], weights: list[float]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


def minmax(values: list[float], eps: float = 1e-8) -> list[float]:
    """EMPG, eq. 12: (H - min) / (max - min + eps)."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low + eps) for value in values]


def quantile(values: list[float], share: float) -> float:
    """Linear between the two order statistics around ``share·(n - 1)``: type 7 of Hyndman and Fan."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def by_quantiles(values: list[float], eps: float = 1e-8) -> list[float]:
    """Eq. 12 with the 5% and 95% quantiles for the extremes, clamped to [0, 1]; 0 where they coincide."""
    low, high = quantile(values, 0.05), quantile(values, 0.95)
    if high == low:
        return [0.0] * len(values)
    return [min(max((value - low) / (high - low + eps), 0.0), 1.0) for value in values]


def by_rank(values: list[float]) -> list[float]:
    """How many others are smaller, equal ones as half, by n - 1; 0 throughout where all are equal."""
    if all(value == values[0] for value in values):
        return [0.0] * len(values)
    ranks = []
    for value in values:
        smaller = sum(other < value for other in values)
        equal = sum(other == value for other in values)
        ranks.append((smaller + (equal - 1) / 2) / (len(values) - 1))
    return ranks


NORMALIZATIONS = {"minmax": minmax, "quantile": by_quantiles, "rank": by_rank}


@dataclass(frozen=True)
class Modulation:
    h_norm: list[float]
    scale: list[float]
    bonus: list[float]
    advantages: list[float]


def empg(
    batch: Batch,
    advantages: ByTurn,
    *,
    k: float,
    k_f: float,
    zeta: float,
    center: bool,
    normalize: str = "minmax",
    weigh_by_tokens: bool = False,
    reverse: bool = False,
) -> Modulation:
    """EMPG: A_mod(i, t) = A_i · g(H_t) + zeta · f(H_{t+1}) (eq. 8), less its mean over the steps (eq. 7).

    The means of eq. 10 and 7 run over steps; with ``weigh_by_tokens`` each counts as often as it has own tokens.
    The control, ``reverse``, has 1 - H in the place of H, which is between 0 and 1.
    """
    turns = flat([episode.turns for episode in batch])
    if not turns:
        return Modulation([], [], [], [])
    weights = [float(turn.tokens) if weigh_by_tokens else 1.0 for turn in turns]
    h_norm = NORMALIZATIONS[normalize]([turn.entropy for turn in turns])  # eq. 12
    if reverse:
        h_norm = [1.0 - h for h in h_norm]
    average = weighted_mean([math.exp(-k * h) for h in h_norm], weights)
    scale = [math.exp(-k * h) / average for h in h_norm]  # eq. 10
    bonus, number = [], 0
    for episode in batch:
        for place in range(len(episode.turns)):
            last = place == len(episode.turns) - 1
            bonus.append(0.0 if last else zeta * math.exp(-k_f * h_norm[number + 1]))  # eq. 11
            number += 1
    modulated = [a * g + f for a, g, f in zip(flat(advantages), scale, bonus, strict=True)]  # eq. 8
    if center:
        centre = weighted_mean(modulated, weights)
        modulated = [value - centre for value in modulated]  # eq. 7
    return Modulation(h_norm, scale, bonus, modulated)


def aem(batch: Batch, advantages: ByTurn, *, strength: float, over: str, eps: float = 1e-8) -> Modulation:
    """AEM: alpha = exp(-lambda·H̃) / mean over the set of exp(-lambda·H̃), and A' = alpha·A.

    H̃ is min-maxed in the set. A response is a turn; its set is the batch, its question, or its trajectory.
    """
    sets: dict[int, list[int]] = {}
    turns = []
    for number, episode in enumerate(batch):
        name = {"batch": 0, "question": episode.group, "trajectory": number}[over]
        for turn in episode.turns:
            sets.setdefault(name, []).append(len(turns))
            turns.append(turn)
    h_norm, scale = [0.0] * len(turns), [1.0] * len(turns)
    for members in sets.values():
        normalised = minmax([turns[number].entropy for number in members], eps)
        average = mean([math.exp(-strength * h) for h in normalised])
        for number, h in zip(members, normalised, strict=True):
            h_norm[number] = h
            scale[number] = math.exp(-strength * h) / average
    scaled = [a * alpha for a, alpha in zip(flat(advantages), scale, strict=True)]
    return Modulation(h_norm, scale, [0.0] * len(turns), scaled)


# Regularizers


def trajectory_mean(by_turn: ByTurn) -> float:
    """EPO: over the turns of a trajectory, then over the batch's trajectories."""
    return mean([mean(turns) for turns in by_turn])


def phase_weight(progress: float) -> float:
    """EPO's released code, p within each half of the run: 1 - 0.2·(1 - exp(-2p)), then 0.8·exp(-3p)."""
    if progress <= 0.5:
        return 1 - 0.2 * (1 - math.exp(-2 * (progress / 0.5)))
    return 0.8 * math.exp(-3 * ((progress - 0.5) / 0.5))


def history_mean(past: list[Batch]) -> float | None:
    """EPO: the cumulative mean of the past batches' entropies."""
    if not past:
        return None
    return mean([trajectory_mean([[turn.entropy for turn in e.turns] for e in batch]) for batch in past])


def history_of_places(past: list[Batch]) -> dict[int, float]:
    """EPO's released code: a history for each place of a turn in its episode, over the batches that have it."""
    by_place: dict[int, list[float]] = {}
    for batch in past:
        places: dict[int, list[float]] = {}
        for episode in batch:
            for place, turn in enumerate(episode.turns):
                places.setdefault(place, []).append(turn.entropy)
        for place, entropies in places.items():
            by_place.setdefault(place, []).append(mean(entropies))
    return {place: mean(means) for place, means in by_place.items()}


def bands(
    batch: Batch, past: list[Batch], *, low: float, high: float, by_place: bool
) -> list[list[tuple[float, float]]]:
    """EPO: [kappa_l · history, kappa_r · history] for each turn; without a history, all numbers."""
    everything = (-math.inf, math.inf)
    whole, places = history_mean(past), history_of_places(past)
    found = []
    for episode in batch:
        of_turns = []
        for place in range(len(episode.turns)):
            history = places.get(place) if by_place else whole
            of_turns.append(everything if history is None else (low * history, high * history))
        found.append(of_turns)
    return found


def penalty(entropy: float, band: tuple[float, float], *, alpha: float, distance: bool) -> float:
    """EPO: P = 0 inside the band and alpha outside. ``distance``: alpha times the nats to the band instead."""
    outside = max(band[0] - entropy, entropy - band[1], 0.0)
    if distance:
        return alpha * outside
    return alpha if outside > 0 else 0.0


def penalty_slope(entropy: float, band: tuple[float, float], *, alpha: float, distance: bool) -> float:
    """dP/dH: the released constant has none."""
    if not distance or band[0] <= entropy <= band[1]:
        return 0.0
    return alpha if entropy > band[1] else -alpha


# Corrections


def log_ratios(episode: Episode) -> list[list[float]]:
    """log rho = log pi_old - log pi_rollout of the own tokens of each of the episode's sequences."""
    sequences, place = [], 0
    for count in episode.samples:
        ratios = []
        for turn in episode.turns[place : place + count]:
            ratios.extend(a - b for a, b in zip(turn.logprobs, turn.rollout_logprobs, strict=True))
        sequences.append(ratios)
        place += count
    return sequences


def tis(batch: Batch, *, cap: float, sequence: bool) -> list[float]:
    """Truncated importance sampling: min(rho, C), rho of a token, or the product over its sequence."""
    weights = []
    for episode in batch:
        for ratios in log_ratios(episode):
            for ratio in ratios:
                weights.append(min(math.exp(math.fsum(ratios) if sequence else ratio), cap))
    return weights


def mis(batch: Batch, *, low: float, high: float, sequence: bool) -> list[float]:
    """Masked importance sampling: rho inside [low, high], else 0. IcePop is it by tokens."""
    weights = []
    for episode in batch:
        for ratios in log_ratios(episode):
            for ratio in ratios:
                rho = math.exp(math.fsum(ratios) if sequence else ratio)
                weights.append(rho if low <= rho <= high else 0.0)
    return weights


def sequence_rejection(batch: Batch, *, low: float, high: float, geometric: bool) -> list[float]:
    """1 for the tokens of a sequence whose rho (product, or geometric mean) is inside [low, high], else 0."""
    weights = []
    for episode in batch:
        for ratios in log_ratios(episode):
            rho = math.exp(mean(ratios) if geometric else math.fsum(ratios))
            weights.extend([1.0 if low <= rho <= high else 0.0] * len(ratios))
    return weights


# Masks


def kept(batch: Batch, advantages: ByTurn, *, truncated: bool, cut_turns: bool, bonus_only: bool) -> list[bool]:
    """Which own tokens the loss sees."""
    tokens = []
    for episode, of_turns in zip(batch, advantages, strict=True):
        for turn, advantage in zip(episode.turns, of_turns, strict=True):
            left_out = (truncated and episode.truncated) or (cut_turns and turn.cut)
            left_out = left_out or (bonus_only and advantage == 0)
            tokens.extend([not left_out] * turn.tokens)
    return tokens


# The loss, token by token


@dataclass(frozen=True)
class Slopes:
    """A token's loss, and its derivatives with respect to the token's log-prob and entropy."""

    value: float
    by_logprob: float = 0.0
    by_entropy: float = 0.0


def clipped(ratio: float, advantage: float, *, low: float, high: float, dual: float | None = None) -> Slopes:
    """PPO, eq. 7, as a loss: max(-A·r, -A·clip(r, 1 - low, 1 + high)); dual clip: at most -A·c where A < 0.

    dr/d(log p) = r.
    """
    plain = -advantage * ratio
    held = -advantage * min(max(ratio, 1 - low), 1 + high)
    loss, slope = (plain, plain) if plain >= held else (held, 0.0)
    if dual is not None and advantage < 0 and loss > -advantage * dual:
        loss, slope = -advantage * dual, 0.0
    return Slopes(loss, by_logprob=slope)


def sequence_ratio(logprobs: list[float], old_logprobs: list[float]) -> float:
    """GSPO, eq. 7: s = exp(1/|y| · sum over t of log(pi / pi_old))."""
    return math.exp(mean([new - old for new, old in zip(logprobs, old_logprobs, strict=True)]))


def kl_estimate(logprob: float, reference: float, estimator: str) -> float:
    """Schulman: with d = log p - log q, k1 = d, k2 = d²/2, k3 = exp(-d) - 1 + d."""
    difference = logprob - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference**2 / 2
    return math.exp(-difference) - 1 + difference


def kl_term(logprob: float, old: float, reference: float, *, coefficient: float, estimator: str) -> Slopes:
    """The estimate, and the gradient of KL(p‖q) = E_p[(log p - log q)·∇log p], on tokens that p_old drew.

    E_p[f] = E_{p_old}[p/p_old · f], whose factor has no gradient of its own.
    """
    importance = math.exp(logprob - old)
    return Slopes(
        coefficient * importance * kl_estimate(logprob, reference, estimator),
        by_logprob=coefficient * importance * (logprob - reference),
    )

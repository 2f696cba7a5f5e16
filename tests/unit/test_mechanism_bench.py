"""Whether bench/mechanism takes the gradients that training takes, and finds in updates what was put into them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.mechanism.__main__ import main
from bench.mechanism.blocks import Block, TurnTable, read_block, write_block
from bench.mechanism.entropies import correlations_of
from bench.mechanism.findings import Origin, add_findings, findings_of, read_findings
from bench.mechanism.gradients import TurnGradients
from bench.mechanism.page import write_page
from bench.mechanism.play import batch_path
from bench.mechanism.products import Products, half_width
from bench.mechanism.rows import BINS, MODULATIONS, PLAIN, Row, row_weights, rows
from bench.mechanism.updates import NUMBER, SUCCESS, best_scaling, update_findings
from megatron_empg.algorithms.algorithm import Algorithm
from megatron_empg.algorithms.base import Experience, Scores
from megatron_empg.algorithms.dapo import Dapo
from megatron_empg.algorithms.empg import Empg
from megatron_empg.algorithms.grpo import Grpo
from megatron_empg.algorithms.sample import Sample
from megatron_empg.rollout.service.batch import Batch
from megatron_empg.rollout.service.experience import experience_of
from tests.support.models import save_random_model

ROOT = Path(__file__).parents[2]
POLICY, QUICKSTART = ROOT / "recipes/miniature/policy", ROOT / "recipes/quickstart.yaml"
EDGES = torch.linspace(0.1, 0.9, BINS - 1, dtype=torch.float64)
DIMENSIONS = 40


def batch(seed: int = 0) -> Experience:
    """Three questions of four episodes, of one to three turns; the last question's rewards are equal."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for number in range(12):
        turns, place = [], 5
        for _ in range(number % 3 + 1):
            own = int(torch.randint(1, 6, (1,), generator=generator))
            turns.append([place, place + own])
            place += own + 4
        tokens = torch.randint(3, 1280, (place - 4,), generator=generator)
        samples.append(Sample(tokens, torch.tensor(turns)))
    own_tokens = sum(sample.num_own_tokens for sample in samples)
    return experience_of(
        samples,
        torch.arange(12),
        rewards=torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1]),
        groups=torch.arange(12) // 4,
        rollout_logprobs=torch.zeros(own_tokens),
    )


def entropies_of(experience: Experience) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(len(experience.turn_lengths), generator=generator, dtype=torch.float64)


# Gradients


def test_turn_gradients_are_those_of_one_pass_over_the_whole_sample_in_float64() -> None:
    experience = batch()
    sample = experience.samples[2]
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float64, attn_implementation="eager")
    logits = model(sample.tokens[None]).logits[0]
    found = list(TurnGradients(POLICY).of_turns([sample]))
    assert len(found) == 3
    for (start, end), gradient in zip(sample.turns.tolist(), found, strict=True):
        own = sample.tokens[start:end]
        logprob = logits[start - 1 : end - 1].log_softmax(-1).gather(1, own[:, None]).sum()
        parts = torch.autograd.grad(logprob, list(model.parameters()), retain_graph=True)
        expected = torch.cat([part.flatten() for part in parts])
        assert torch.allclose(gradient.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_entropies_are_those_of_the_whole_vocabulary() -> None:
    sample = batch().samples[1]
    scores = TurnGradients(POLICY).score([sample])
    model = AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float64)
    probabilities = model(sample.tokens[None]).logits[0].softmax(-1)[sample.predictors()]
    expected = -(probabilities * probabilities.log()).sum(-1)
    assert torch.allclose(scores.entropies.double(), expected, atol=1e-5)
    assert len(scores.logprobs) == sample.num_own_tokens


# Weights


@pytest.mark.parametrize("name", list(MODULATIONS))
@pytest.mark.parametrize("base", ["dapo", "grpo"])
def test_a_turn_weighs_as_the_algorithm_weighs_its_tokens(base: str, name: str) -> None:
    """The weight is the token's advantage by the number of tokens, as the actor's mean takes it."""
    experience = batch()
    entropies = entropies_of(experience)
    kept = list(range(12 if base == "grpo" else 8))
    part = experience.select(kept)
    section = Dapo() if base == "dapo" else Grpo()
    modulation = MODULATIONS[name]
    if modulation is not None:
        section = section.model_copy(update={"modulation": modulation})
    else:
        section = type(section).model_validate({"modulation": "none"})
    algorithm = Algorithm(section)
    own = entropies[experience.turns_of(kept)].repeat_interleave(part.turn_lengths)
    scores = Scores(torch.zeros(len(own)), own)
    samples = algorithm.samples(part, scores, algorithm.credit(part, scores, []), list(range(len(kept))))
    advantages = torch.cat([sample.streams.advantages for sample in samples])
    found = row_weights(experience, entropies, EDGES)[NUMBER[Row(base, name)]]
    per_token = found[experience.turns_of(kept)].repeat_interleave(part.turn_lengths)
    assert torch.allclose(per_token, advantages.double() / len(own), atol=1e-7)
    others = found[len(part.turn_lengths) :]
    assert not others.any(), "turns of dropped groups"


def test_bins_part_the_plain_update() -> None:
    experience = batch()
    found = row_weights(experience, entropies_of(experience), EDGES)
    assert len(found) == len(rows())
    assert torch.equal(found[-BINS:].sum(0), found[NUMBER[Row("dapo", PLAIN)]])
    assert ((found[-BINS:] != 0).sum(0) <= 1).all()


def test_a_batch_of_equal_rewards_moves_dapo_by_nothing() -> None:
    experience = batch()
    equal = replace(experience, rewards=torch.ones(12))
    found = row_weights(equal, entropies_of(equal), EDGES)
    of_dapo = [number for number, row in enumerate(rows()) if row.base == "dapo"]
    assert not found[of_dapo].any()
    assert found[NUMBER[Row("grpo", "bonus")]].any(), "GRPO keeps such groups, and trains on the bonus"


def test_the_success_row_is_the_policy_gradient_by_the_other_episodes() -> None:
    experience = batch()
    found = row_weights(experience, entropies_of(experience), EDGES)[SUCCESS]
    others = [0.0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1.0, 1, 1, 1, 1]
    expected = (experience.rewards.double() - torch.tensor(others, dtype=torch.float64)) / 12
    assert torch.allclose(found, expected[experience.episode_of_turn])


# Findings


def made_blocks(count: int = 20, noise: float = 0.5) -> list[Block]:
    """Updates around a mean that all rows share but for the reversed ones, whose mean is its opposite; "AEM" has
    half of the others' noise, and only the first bin has any signal."""
    generator = np.random.default_rng(0)
    mean = np.zeros(DIMENSIONS)
    mean[:10] = 0.3
    blocks = []
    for number in range(count):
        updates = mean + noise * generator.standard_normal((10, len(rows()), DIMENSIONS))
        updates[:, NUMBER[Row("dapo", "AEM")]] = mean + noise / 2 * generator.standard_normal((10, DIMENSIONS))
        updates[:, NUMBER[Row("dapo", "EMPG, reversed")]] -= 2 * mean
        for place in range(1, BINS):
            updates[:, NUMBER[Row("dapo", f"bin {place}")]] -= mean
        grams = np.einsum("brd,bsd->brs", updates, updates)
        sums, squares = updates.sum(0).astype(np.float32), (updates**2).sum(0).astype(np.float32)
        blocks.append(Block(sums, squares, grams, made_turns(generator, number)))
    return blocks


def made_turns(generator: np.random.Generator, block: int, turns: int = 400) -> TurnTable:
    """Episodes of two turns in questions of four, all of which share their first state; clarity says success."""
    index = np.arange(turns)
    episode = index // 2
    reward = generator.integers(0, 2, turns // 2)[episode].astype(float)
    entropy = generator.random(turns)
    last = index % 2 == 1
    clarity = np.where(last, 0.0, reward + generator.standard_normal(turns))
    return TurnTable(
        entropy=entropy,
        length=np.full(turns, 5),
        squared_norm=entropy * 7,
        reward=reward,
        place=index % 2,
        left=1 - index % 2,
        group=episode // 4,
        episode=episode,
        batch=np.full(turns, block),
        state=np.where(last, index + 1000, 0),
        scale=np.ones(turns),
        clarity=clarity,
    )


def test_products_of_means_have_no_share_of_the_noise() -> None:
    """At this noise the mean's own square would be too large by 40 * 25 / 200, which is 5."""
    blocks, plain = made_blocks(noise=5.0), NUMBER[Row("dapo", PLAIN)]
    products = Products(blocks)
    pairs = []
    for first, one in enumerate(blocks):
        others = [other for second, other in enumerate(blocks) if second != first]
        pairs += [(one.sums[plain].astype(float) / 10) @ (other.sums[plain] / 10) for other in others]
    found = products.of_means(list(range(20)))[plain, plain]
    assert found == pytest.approx(np.mean(pairs), rel=1e-5)
    assert abs(found - 10 * 0.3**2) < 2.5
    every = np.concatenate([block.grams[:, plain, plain] for block in blocks])
    assert products.of_updates(list(range(20)))[plain, plain] == pytest.approx(every.mean())


def test_an_interval_of_a_mean_is_students() -> None:
    numbers = np.random.default_rng(3).standard_normal(12)
    left_out = np.array([np.delete(numbers, place).mean() for place in range(12)])
    assert half_width(left_out) == pytest.approx(2.201 * numbers.std(ddof=1) / np.sqrt(12), rel=1e-3)


def test_what_noise_hides_is_not_known() -> None:
    blocks = made_blocks(4, noise=60.0)
    found = update_findings(blocks, Products(blocks))
    assert any(each.signal is None or each.expected_cosine is None for each in found)


def test_less_noise_gains_more_and_the_opposite_loses() -> None:
    blocks = made_blocks()
    found = {each.name: each for each in update_findings(blocks, Products(blocks)) if each.base == "dapo"}
    assert (found[PLAIN].gain.value, found[PLAIN].gain.half_width) == (1.0, 0.0)
    assert found[PLAIN].gain_by_adam.value == 1.0
    expected = np.sqrt((0.9 + DIMENSIONS / 4) / (0.9 + DIMENSIONS / 16))
    assert found["AEM"].gain.value == pytest.approx(expected, rel=0.15)
    assert found["AEM"].gain.low > 1.2
    assert found["AEM"].gain_by_adam.low > 1.2
    assert found["AEM"].size.value == pytest.approx(1 / expected, rel=0.05)
    assert found["EMPG, reversed"].gain.high < 0
    assert found["EMPG, reversed"].expected_cosine is not None
    assert found["EMPG, reversed"].expected_cosine.value == pytest.approx(-1, abs=0.2)
    assert found["bonus"].gain.low < 1 < found["bonus"].gain.high


def test_the_best_scaling_takes_the_bin_that_has_the_signal() -> None:
    best = best_scaling(Products(made_blocks()))
    assert int(np.argmax(best.factors)) == 0
    alone, all_bins = 0.9 + DIMENSIONS / 4, 0.9 + BINS * DIMENSIONS / 4
    assert best.gain_elsewhere == pytest.approx(np.sqrt(all_bins / alone), rel=0.15)


def test_clarity_that_says_success_is_found_and_noise_is_not() -> None:
    found = correlations_of(TurnTable.joined([block.turns for block in made_blocks(40)]))
    assert found.clarity_and_success.low > 0.3
    assert found.entropy_and_success.low < 0 < found.entropy_and_success.high
    assert found.norm_and_entropy == pytest.approx(1.0)
    assert found.same_state == 1.0


# The line and the page


def test_lines_and_page_are_the_same_for_the_same_blocks(tmp_path: Path) -> None:
    origin = Origin("made", "recipes/made.yaml", ["run.seed=3"], "ab" * 32, "0123456789ab", minutes=1.5)
    results = tmp_path / "mechanism.jsonl"
    for _ in range(2):
        add_findings(results, findings_of(origin, made_blocks(), EDGES.tolist()))
    (line,) = read_findings(results)
    assert (line.task, line.batches, line.turns, line.turns_per_episode) == ("made", 200, 8000, 2.0)
    written = write_page(results)
    first = [path.read_bytes() for path in written]
    assert [path.read_bytes() for path in write_page(results)] == first
    text = written[0].read_text(encoding="utf-8")
    assert "## made" in text
    for name in MODULATIONS:
        assert f"| {name} |" in text


def test_the_command_measures_what_was_played_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty batches of a tiny policy; a second call measures nothing, and another policy is refused."""
    folder, results, policy = tmp_path / "folder", tmp_path / "mechanism.jsonl", tmp_path / "policy"
    save_random_model(policy, vocab_size=1280)
    for number in range(40):
        batch_path(folder, number).parent.mkdir(parents=True, exist_ok=True)
        played = Batch(batch(number), torch.zeros(12, 2, dtype=torch.long))
        batch_path(folder, number).write_bytes(played.to_bytes())
    words = ["bench", "tiny", str(QUICKSTART), f"model.path={policy}", "--batches", "40", "--processes", "1"]
    words += ["--folder", str(folder), "--results", str(results)]
    monkeypatch.setattr(sys, "argv", words)
    main()
    (first,) = read_findings(results)
    assert (first.task, first.batches, first.turns) == ("tiny", 40, 40 * 24)
    assert capsys.readouterr().out.count("measured block") == 4
    main()
    assert read_findings(results) == [first]
    assert "measured block" not in capsys.readouterr().out
    save_random_model(policy, vocab_size=1280, seed=1)
    with pytest.raises(SystemExit, match="of another recipe, policy or list of updates"):
        main()


def test_a_block_is_read_as_it_was_written(tmp_path: Path) -> None:
    (block,) = made_blocks(1)
    write_block(tmp_path / "blocks/000.npz", block)
    read = read_block(tmp_path / "blocks/000.npz")
    assert np.array_equal(read.sums, block.sums)
    assert np.array_equal(read.grams, block.grams)
    assert np.array_equal(read.turns.entropy, block.turns.entropy)
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == ["000.npz"]


def test_reversed_empg_is_the_control_of_the_same_constants() -> None:
    control = MODULATIONS["EMPG, reversed"]
    assert isinstance(control, Empg)
    assert control.model_copy(update={"reverse": False}) == MODULATIONS["EMPG"]

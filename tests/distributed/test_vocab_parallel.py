"""Sharded log-prob and entropy over gloo at TP 1, 2 and 4, against the dense float64 definition.

Each case is a test of its own; sharded_cases.py runs them.
"""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from megatron_empg.vocab_parallel import debug_checks, dense_logprob_and_entropy, logprob_and_entropy
from tests.distributed.sharded_cases import (
    WORLD_SIZES,
    Case,
    Collectives,
    assert_near,
    assert_passed,
    random_targets,
    shard_of,
)


def compare(
    group: dist.ProcessGroup,
    full: torch.Tensor,
    targets: torch.Tensor,
    weights: tuple[float, float] = (1.0, 1.0),
    **options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and gradient of this rank's shard against the definition; returns ours."""
    generator = torch.Generator().manual_seed(11)
    upstream = [w * torch.randn(len(targets), generator=generator, dtype=torch.float64) for w in weights]
    mine = shard_of(full, group).requires_grad_()
    before = mine.detach().clone()
    ours = logprob_and_entropy(mine, targets, group, **options)
    used = [i for i in range(2) if weights[i] != 0]
    sum((ours[i] * upstream[i].to(ours[i].dtype)).sum() for i in used).backward()
    dense = full.double().requires_grad_()
    expected = dense_logprob_and_entropy(
        dense, targets, **{k: v for k, v in options.items() if k != "overwrite_logits"}
    )
    sum((expected[i] * upstream[i]).sum() for i in used).backward()
    assert ours[0].dtype == ours[1].dtype == (torch.float64 if full.dtype == torch.float64 else torch.float32)
    assert mine.grad.dtype == full.dtype
    assert_near(ours[0], expected[0], "log-prob")
    assert_near(ours[1], expected[1], "entropy")
    # A bf16 gradient is the float32 one rounded once.
    rounding = max(1e-5, torch.finfo(full.dtype).eps)
    torch.testing.assert_close(mine.grad.double(), shard_of(dense.grad, group), rtol=rounding, atol=1e-5)
    if not options.get("overwrite_logits"):
        assert torch.equal(mine.detach().nan_to_num(), before.nan_to_num()), "the logits were changed"
    return ours


def case_types_and_temperatures(group: dist.ProcessGroup) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
        for temperature in (1.0, 0.6, 2.0):
            full = (torch.randn(23, 64) * 3).to(dtype)
            compare(group, full, random_targets(23, 64), temperature=temperature)


def case_either_output_alone(group: dist.ProcessGroup) -> None:
    full, targets = torch.randn(9, 40), random_targets(9, 40)
    compare(group, full, targets, weights=(1, 0))
    compare(group, full, targets, weights=(0, 1))


def case_padded_vocabulary(group: dist.ProcessGroup) -> None:
    full = torch.randn(17, 128)
    full[:, 61:] = 50  # would dominate if padding were counted; at TP 4 two shards are padding alone
    compare(group, full, random_targets(17, 61), vocab_size=61)


def case_extreme_logits(group: dist.ProcessGroup) -> None:
    for scale in (1e4, -1e4):
        full = torch.randn(11, 48) + scale
        full[::2] *= torch.rand(6, 48)
        compare(group, full, random_targets(11, 48))
        compare(group, full, random_targets(11, 48), temperature=0.7)


def case_one_hot_and_uniform(group: dist.ProcessGroup) -> None:
    full = torch.zeros(6, 32)
    full[:3] = -1e4
    full[torch.arange(3), torch.tensor([0, 13, 31])] = 1e4
    targets = torch.tensor([0, 13, 31, 5, 6, 7])
    log_prob, entropy = compare(group, full, targets)
    assert torch.equal(entropy[:3], torch.zeros(3))
    assert torch.equal(log_prob[:3], torch.zeros(3))
    assert_near(entropy[3:], torch.full((3,), 32.0).log(), "uniform entropy")


def case_masked_actions(group: dist.ProcessGroup) -> None:
    full = torch.randn(13, 64)
    full[:, ::3] = -torch.inf
    full[4, 16:] = -torch.inf  # at TP 4 three shards hold nothing
    full[5, :48] = -torch.inf
    targets = torch.full((13,), 1)
    targets[5] = 50
    for temperature in (1.0, 0.5):
        compare(group, full, targets, temperature=temperature)
    log_prob, _ = logprob_and_entropy(shard_of(full, group), torch.zeros(13, dtype=torch.int64), group)
    assert bool((log_prob == -torch.inf).all()), "a masked target has log-prob -inf"


def case_ignored_tokens_are_exactly_zero(group: dist.ProcessGroup) -> None:
    full = torch.randn(600, 1024)  # several chunks, some wholly ignored
    full[10:500] = torch.nan
    targets = random_targets(600, 1024, 0)
    targets[5:520] = 7777
    mine = shard_of(full, group).requires_grad_()
    log_prob, entropy = logprob_and_entropy(mine, targets, group, ignore_index=7777)
    (log_prob * 3 + entropy).sum().backward()
    ignored = targets == 7777
    for tensor in (log_prob, entropy, mine.grad):
        assert torch.equal(tensor[ignored], torch.zeros_like(tensor[ignored]))
        assert bool((tensor[~ignored] != 0).all())
    clean = full.nan_to_num()
    compare(group, clean, targets, ignore_index=7777)
    compare(group, clean[:8], torch.full((8,), -100))


def case_no_tokens(group: dist.ProcessGroup) -> None:
    log_prob, entropy = compare(group, torch.empty(0, 16), torch.empty(0, dtype=torch.int64))
    assert log_prob.shape == entropy.shape == (0,)


def case_one_collective_of_16_bytes_a_token(group: dist.ProcessGroup) -> None:
    mine, targets = shard_of(torch.randn(50, 64), group).requires_grad_(), random_targets(50, 64)
    with Collectives() as forward:
        log_prob, entropy = logprob_and_entropy(mine, targets, group)
    with Collectives() as backward:
        (log_prob + entropy).sum().backward()
    assert (len(forward.names), forward.bytes) == ((0, []) if group.size() == 1 else (1, [16 * 50]))
    assert backward.names == []


def case_order_and_repetition_change_nothing(group: dist.ProcessGroup) -> None:
    full, targets = torch.randn(31, 4096), random_targets(31, 4096)

    def gradient(order: tuple[int, ...], logits: torch.Tensor) -> torch.Tensor:
        outputs = logprob_and_entropy(logits, targets, group)
        for i in order:
            outputs[i].sum().backward(retain_graph=True)
        return logits.grad

    grads = [gradient(order, shard_of(full, group).requires_grad_()) for order in ((0, 1), (1, 0))]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    again = gradient((0, 1), shard_of(full, group).requires_grad_())
    assert torch.equal(grads[0], again)


def case_gradient_may_take_the_logits_memory(group: dist.ProcessGroup) -> None:
    compare(group, torch.randn(19, 96), random_targets(19, 90), vocab_size=90, overwrite_logits=True)
    leaf = shard_of(torch.randn(19, 96), group).requires_grad_()
    logits = leaf * 1
    log_prob, entropy = logprob_and_entropy(logits, random_targets(19, 96), group, overwrite_logits=True)
    (log_prob + entropy).sum().backward(retain_graph=True)
    assert torch.equal(leaf.grad, logits.detach()), "the gradient should lie where the logits were"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (log_prob + entropy).sum().backward()


def case_upstream_gradient_checked_under_debug(group: dist.ProcessGroup) -> None:
    mine, targets = shard_of(torch.randn(5, 32), group).requires_grad_(), torch.arange(5)
    with debug_checks():
        log_prob, entropy = logprob_and_entropy(mine, targets, group)
        (log_prob + entropy).sum().backward()  # alike on all ranks: accepted
        log_prob, _ = logprob_and_entropy(mine, targets, group)
        unlike = (log_prob * (1 + group.rank())).sum()
        if group.size() > 1:
            with pytest.raises(ValueError, match="same on all tensor-parallel ranks"):
                unlike.backward()


def case_hypothesis_shapes(group: dist.ProcessGroup) -> None:
    @seed(3)
    @settings(max_examples=25, deadline=None, database=None)
    @given(
        tokens=st.integers(0, 9),
        columns=st.integers(1, 70),
        padding=st.floats(0, 1),
        scale=st.sampled_from([0.1, 1.0, 30.0]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        temperature=st.floats(0.25, 4),
        draw=st.integers(0, 10**6),
    )
    def check(tokens, columns, padding, scale, dtype, temperature, draw):
        torch.manual_seed(draw)
        whole = columns * group.size()
        vocab_size = max(1, round(whole * (1 - padding)))
        full = (torch.randn(tokens, whole) * scale).to(dtype)
        targets = random_targets(tokens, vocab_size)
        compare(group, full, targets, vocab_size=vocab_size, temperature=temperature)

    check()


CASES = [value for name, value in list(globals().items()) if name.startswith("case_")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removeprefix("case_"))
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_sharded(world_size: int, case: Case) -> None:
    assert_passed(case, world_size)

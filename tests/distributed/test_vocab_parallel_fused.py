"""The fused LM head over gloo at TP 1, 2 and 4, against the dense float64 definition of its logits."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_empg.vocab_parallel import (
    debug_checks,
    dense_logprob_and_entropy,
    linear_logprob_and_entropy,
)
from tests.distributed.sharded_cases import (
    WORLD_SIZES,
    Case,
    Collectives,
    assert_near,
    assert_passed,
    random_targets,
)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation inside made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def rows_of(full: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's rows of a matrix whose rows divide by TP."""
    return full.chunk(group.size(), dim=0)[group.rank()].clone()


def model(tokens: int, columns: int, width: int = 24, dtype: torch.dtype = torch.float32):
    return torch.randn(tokens, width).to(dtype), torch.randn(columns, width).mul(0.4).to(dtype)


def compare(
    group: dist.ProcessGroup,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    sequence_parallel: bool = False,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    **options,
) -> None:
    """Values, and gradients of this rank's hidden and weight, against the definition."""
    generator = torch.Generator().manual_seed(13)
    upstream = torch.randn(2, len(targets), generator=generator, dtype=torch.float64)
    my_hidden = (rows_of(hidden, group) if sequence_parallel else hidden.clone()).requires_grad_()
    my_weight = rows_of(weight, group).requires_grad_()
    ours = linear_logprob_and_entropy(
        my_hidden, my_weight, targets, group, sequence_parallel=sequence_parallel,
        vocab_size=vocab_size, temperature=temperature, **options,
    )  # fmt: skip
    (ours[0] * upstream[0] + ours[1] * upstream[1]).sum().backward()
    dense = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    expected = dense_logprob_and_entropy(
        dense[0] @ dense[1].t(), targets, vocab_size=vocab_size, temperature=temperature
    )
    (expected[0] * upstream[0] + expected[1] * upstream[1]).sum().backward()
    assert_near(ours[0], expected[0], "log-prob")
    assert_near(ours[1], expected[1], "entropy")
    expected_hidden = rows_of(dense[0].grad, group) if sequence_parallel else dense[0].grad
    for mine, theirs, what in (
        (my_hidden, expected_hidden, "gradient of hidden"),
        (my_weight, rows_of(dense[1].grad, group), "gradient of weight"),
    ):
        assert mine.grad.dtype == hidden.dtype
        # In half precision each rank's share of the hidden gradient is rounded before the sum over ranks.
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        tolerance = 1e-5 if hidden.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(hidden.dtype).eps
        torch.testing.assert_close(
            mine.grad.double(), theirs, rtol=tolerance, atol=tolerance * max(1.0, scale),
            msg=lambda m, what=what: f"{what}: {m}",
        )  # fmt: skip


def case_types_chunks_and_parallelism(group: dist.ProcessGroup) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for chunk_tokens, sequence_parallel in ((5, False), (7, True), (None, True), (1000, False)):
            hidden, weight = model(24, 64, dtype=dtype)
            compare(
                group, hidden, weight, random_targets(24, 61), vocab_size=61, temperature=0.9,
                chunk_tokens=chunk_tokens, sequence_parallel=sequence_parallel,
            )  # fmt: skip


def case_every_token_counts(group: dist.ProcessGroup) -> None:
    for sequence_parallel in (False, True):
        hidden, weight = model(20, 40)
        targets = random_targets(20, 40, ignored=0)
        compare(group, hidden, weight, targets, chunk_tokens=6, sequence_parallel=sequence_parallel)


def case_no_token_counts(group: dist.ProcessGroup) -> None:
    hidden, weight = model(8, 32)
    for sequence_parallel in (False, True):
        compare(group, hidden, weight, torch.full((8,), -100), sequence_parallel=sequence_parallel)
        compare(group, hidden[:0], weight, torch.empty(0, dtype=torch.int64), sequence_parallel=sequence_parallel)


def case_ignored_tokens_may_hold_anything(group: dist.ProcessGroup) -> None:
    hidden, weight = model(12, 32)
    targets = random_targets(12, 32, 0)
    targets[3:7] = -100
    hidden[3:7] = torch.nan
    hidden.requires_grad_()
    mine = rows_of(weight, group).requires_grad_()
    log_prob, entropy = linear_logprob_and_entropy(hidden, mine, targets, group, chunk_tokens=4)
    (log_prob + entropy).sum().backward()
    assert torch.equal(hidden.grad[3:7], torch.zeros(4, 24))
    assert torch.equal(log_prob[3:7], torch.zeros(4))
    assert bool(mine.grad.isfinite().all())


def case_collectives_do_not_depend_on_chunks(group: dist.ProcessGroup) -> None:
    hidden, weight = model(16, 32, width=8)
    targets = random_targets(16, 32, 0)
    targets[:4] = -100
    for sequence_parallel in (False, True):
        my_hidden = (rows_of(hidden, group) if sequence_parallel else hidden.clone()).requires_grad_()
        mine = rows_of(weight, group).requires_grad_()
        with Collectives() as forward:
            log_prob, entropy = linear_logprob_and_entropy(
                my_hidden, mine, targets, group, chunk_tokens=3, sequence_parallel=sequence_parallel
            )
        with Collectives() as backward:
            (log_prob + entropy).sum().backward()
        statistics, shard, whole = 12 * 16, 16 // group.size() * 8 * 4, 16 * 8 * 4
        if group.size() == 1:
            assert (forward.names, backward.names) == ([], [])
        elif sequence_parallel:
            assert forward.bytes == [shard, statistics]
            assert len(backward.names) == 2, "gather of hidden and reduce-scatter of its gradient"
        else:
            assert forward.bytes == [statistics]
            assert ([name.split(".")[0] for name in backward.names], backward.bytes) == (["allreduce"], [whole])


def case_no_logits_beyond_a_chunk(group: dist.ProcessGroup) -> None:
    hidden, weight = model(400, 64 * group.size(), width=4)
    hidden.requires_grad_()
    mine = rows_of(weight, group).requires_grad_()
    with LargestTensor() as largest:
        outputs = linear_logprob_and_entropy(hidden, mine, random_targets(400, 64), group, chunk_tokens=50)
        torch.stack(outputs).sum().backward()
    # 50 tokens of logits, or the 4 statistics of every token from every rank.
    assert largest.elements <= max(50 * 64, 400 * 4 * group.size())


def case_main_grad_accumulates(group: dist.ProcessGroup) -> None:
    for dtype, main_dtype in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        hidden, weight = model(20, 32, dtype=dtype)
        mine = torch.nn.Parameter(rows_of(weight, group))
        mine.main_grad = torch.full(mine.shape, 0.5, dtype=main_dtype)
        mine.grad_added_to_main_grad = False
        expected = mine.main_grad.double()
        for step in range(2):
            targets = random_targets(20, 32)
            log_prob, entropy = linear_logprob_and_entropy(
                hidden, mine, targets, group, chunk_tokens=6, gradient_accumulation_fusion=True
            )
            (log_prob - entropy).sum().backward()
            assert mine.grad_added_to_main_grad, "DistributedDataParallel would add a meaningless gradient"
            assert mine.grad is not None, "DistributedDataParallel's hook wants a gradient to fire on"
            mine.grad = None
            reference = rows_of(weight, group).requires_grad_()
            log_prob, entropy = linear_logprob_and_entropy(hidden, reference, targets, group)
            (log_prob - entropy).sum().backward()
            expected = expected + reference.grad.double()
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(
                mine.main_grad.double(), expected, rtol=tolerance, atol=tolerance * (step + 1)
            )


def case_frozen_inputs_get_no_gradient(group: dist.ProcessGroup) -> None:
    hidden, weight = model(10, 16)
    targets = random_targets(10, 16)
    trainable = hidden.clone().requires_grad_()
    with Collectives() as collectives:
        sum(linear_logprob_and_entropy(trainable, rows_of(weight, group), targets, group)).sum().backward()
    assert len(collectives.names) == (0 if group.size() == 1 else 2)
    mine = rows_of(weight, group).requires_grad_()
    with Collectives() as collectives:
        sum(linear_logprob_and_entropy(hidden, mine, targets, group)).sum().backward()
    assert len(collectives.names) == (0 if group.size() == 1 else 1)
    assert trainable.grad is not None
    assert mine.grad is not None


def case_debug_checks(group: dist.ProcessGroup) -> None:
    hidden, weight = model(6, 16)
    mine = rows_of(weight, group).requires_grad_()
    with debug_checks():
        sum(linear_logprob_and_entropy(hidden, mine, random_targets(6, 16), group)).sum().backward()
        if group.size() > 1:
            with pytest.raises(ValueError, match="hidden must be the same"):
                linear_logprob_and_entropy(hidden + group.rank(), mine, random_targets(6, 16), group)


def case_hypothesis_shapes(group: dist.ProcessGroup) -> None:
    @seed(5)
    @settings(max_examples=15, deadline=None, database=None)
    @given(
        tokens=st.integers(0, 5),
        columns=st.integers(1, 20),
        width=st.integers(1, 9),
        chunk_tokens=st.integers(1, 7),
        sequence_parallel=st.booleans(),
        draw=st.integers(0, 10**6),
    )
    def check(tokens, columns, width, chunk_tokens, sequence_parallel, draw):
        torch.manual_seed(draw)
        hidden, weight = model(tokens * group.size(), columns * group.size(), width)
        vocab_size = int(torch.randint(1, len(weight) + 1, ()))
        targets = random_targets(len(hidden), vocab_size)
        compare(
            group, hidden, weight, targets, vocab_size=vocab_size, chunk_tokens=chunk_tokens,
            sequence_parallel=sequence_parallel,
        )  # fmt: skip

    check()


CASES = [value for name, value in list(globals().items()) if name.startswith("case_")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.removeprefix("case_"))
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_fused(world_size: int, case: Case) -> None:
    assert_passed(case, world_size)

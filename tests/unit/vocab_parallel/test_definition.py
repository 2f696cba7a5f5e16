"""One rank: both functions against the dense float64 definition, on CPU and, marked gpu, on CUDA.

`test_triton_interpreter.py` runs this file once more through the Triton kernels.
"""

import math
import subprocess
import sys

import pytest
import torch

from megatron_empg.vocab_parallel import (
    debug_checks,
    dense_logprob_and_entropy,
    linear_logprob_and_entropy,
    logprob_and_entropy,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    torch.manual_seed(1)
    return torch.device(request.param)


def random_targets(tokens: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    targets = torch.randint(0, vocab_size, (tokens,))
    return targets.masked_fill(torch.rand(tokens) < 0.2, -100).to(device)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, rounded_to: torch.dtype = torch.float32) -> None:
    tolerance = 1e-5 if rounded_to in (torch.float32, torch.float64) else torch.finfo(rounded_to).eps
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=1e-5)


def gradients(outputs: tuple[torch.Tensor, torch.Tensor], inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Of a fixed random combination of both outputs."""
    generator = torch.Generator().manual_seed(2)
    upstream = torch.randn(2, len(outputs[0]), generator=generator, dtype=torch.float64).to(outputs[0].device)
    loss = sum((output * weight).sum() for output, weight in zip(outputs, upstream, strict=True))
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("tokens", "columns", "vocab_size"), [(7, 33, 30), (9, 5003, 5003), (1, 1, 1)])
def test_logits(device, dtype, temperature, tokens, columns, vocab_size):
    logits = (torch.randn(tokens, columns) * 3).to(dtype).to(device)
    logits[0, ::4] = -torch.inf
    targets = random_targets(tokens, vocab_size, device)
    targets[0] = min(1, vocab_size - 1)
    if columns == 1:
        logits[0] = 3.0
    options = {"vocab_size": vocab_size, "temperature": temperature}
    mine, dense = logits.clone().requires_grad_(), logits.double().requires_grad_()
    ours = logprob_and_entropy(mine, targets, **options)
    expected = dense_logprob_and_entropy(dense, targets, **options)
    assert_near(torch.stack(ours), torch.stack(expected))
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near(gradients(ours, [mine])[0], gradients(expected, [dense])[0], rounded_to=dtype)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_extreme_logits(device, scale, temperature):
    logits = torch.randn(20, 200, device=device) + scale
    logits[::2] *= torch.rand(10, 200, device=device)
    targets = random_targets(20, 200, device)
    mine, dense = logits.clone().requires_grad_(), logits.double().requires_grad_()
    ours = logprob_and_entropy(mine, targets, temperature=temperature)
    expected = dense_logprob_and_entropy(dense, targets, temperature=temperature)
    assert_near(torch.stack(ours), torch.stack(expected))
    assert_near(gradients(ours, [mine])[0], gradients(expected, [dense])[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk_tokens", [None, 7, 1])
@pytest.mark.parametrize("keep_all", [True, False])
def test_fused(device, dtype, chunk_tokens, keep_all):
    hidden, weight = torch.randn(12, 24).to(device, dtype), (torch.randn(130, 24) * 0.4).to(device, dtype)
    targets = random_targets(12, 121, device)
    if keep_all:
        targets = targets.clamp(min=0)
    options = {"vocab_size": 121, "temperature": 0.9}
    mine = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    ours = linear_logprob_and_entropy(*mine, targets, chunk_tokens=chunk_tokens, **options)
    dense = [hidden.double().requires_grad_(), weight.double().requires_grad_()]
    expected = dense_logprob_and_entropy(dense[0] @ dense[1].t(), targets, **options)
    assert_near(torch.stack(ours), torch.stack(expected))
    for actual, wanted in zip(gradients(ours, mine), gradients(expected, dense), strict=True):
        # On CUDA half-precision products take a rounded gradient of the logits, so errors add over the sum.
        tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
        atol = tolerance * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(actual.double(), wanted, rtol=tolerance, atol=atol)


@pytest.mark.parametrize("order", [(0,), (1,), (0, 1)])
def test_gradcheck(device, order):
    logits = torch.randn(5, 9, dtype=torch.float64, device=device)
    logits[3, 2] = -1e4
    targets = torch.tensor([0, 6, -100, 3, 4], device=device)
    options = {"vocab_size": 8, "temperature": 1.3}
    assert torch.autograd.gradcheck(
        lambda x: [logprob_and_entropy(x, targets, **options)[i] for i in order], logits.requires_grad_()
    )
    hidden, weight = (torch.randn(n, 3, dtype=torch.float64, device=device, requires_grad=True) for n in (5, 9))
    assert torch.autograd.gradcheck(
        lambda h, w: [linear_logprob_and_entropy(h, w, targets, chunk_tokens=2, **options)[i] for i in order],
        (hidden, weight),
    )


@pytest.mark.parametrize("shape", ["random", "uniform", "one-hot"])
def test_proposition_1_of_the_paper(device, shape):
    """E over a ~ π of ‖∇ log π(a)‖², in the logits, is 1 − exp(−H_2), H_2 = −log Σ p² (arXiv 2509.09265)."""
    vocab = 20
    row = {"random": torch.randn(vocab) * 2, "uniform": torch.zeros(vocab), "one-hot": torch.zeros(vocab)}[shape]
    if shape == "one-hot":
        row[7] = 1e3
    logits = row.repeat(vocab, 1).to(device).requires_grad_()
    log_prob, _ = logprob_and_entropy(logits, torch.arange(vocab, device=device))  # every action once
    (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
    expected_norm = (log_prob.exp() * gradient.square().sum(1)).sum()
    collision_entropy = -row.double().softmax(0).square().sum().log()
    assert_near(expected_norm.detach().cpu(), 1 - torch.exp(-collision_entropy))


def test_padding_rows_and_ignored_rows_get_exactly_zero(device):
    logits = torch.randn(6, 40, device=device)
    logits[2] = torch.nan
    logits.requires_grad_()
    targets = torch.tensor([1, 2, -1, 4, 5, 6], device=device)
    outputs = logprob_and_entropy(logits, targets, vocab_size=33, ignore_index=-1)
    (gradient,) = gradients(outputs, [logits])
    assert [output[2].item() for output in outputs] == [0, 0]
    assert int((gradient[2] != 0).sum()) == 0
    assert int((gradient[:, 33:] != 0).sum()) == 0
    assert bool((gradient[[0, 1, 3, 4, 5], :33] != 0).all())


def test_rows_need_not_be_contiguous(device):
    base = torch.randn(12, 64, device=device)
    for logits in (base[::2, :50], base.t()[:50]):
        targets = torch.zeros(len(logits), dtype=torch.int64, device=device)
        mine, dense = logits.detach().requires_grad_(), logits.double().detach().requires_grad_()
        ours, expected = logprob_and_entropy(mine, targets), dense_logprob_and_entropy(dense, targets)
        assert_near(torch.stack(ours), torch.stack(expected))
        assert_near(gradients(ours, [mine])[0], gradients(expected, [dense])[0])


def test_nothing_of_vocabulary_size_is_saved_but_the_logits(device):
    logits, saved = torch.randn(64, 300, device=device, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        logprob_and_entropy(logits, random_targets(64, 300, device))
    large = [tensor for tensor in saved if tensor.numel() > 64]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
    hidden, weight, saved[:] = torch.randn(64, 4, device=device), torch.randn(300, 4, device=device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear_logprob_and_entropy(hidden, weight.requires_grad_(), random_targets(64, 300, device))
    assert {t.data_ptr() for t in saved if t.numel() > 64} == {hidden.data_ptr(), weight.data_ptr()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, r"logits must be \[tokens, vocabulary/TP\], got the shape \(3,\)"),
        ({"logits": torch.zeros(3, 5, dtype=torch.int32)}, "logits must be one of float32.*got int32"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, r"targets must be \[tokens\] = \[3\]"),
        ({"targets": torch.zeros(3)}, "targets must be int64 or int32, got float32"),
        ({"targets": torch.tensor([0, 5, 0])}, r"targets\[1\] is 5, outside the vocabulary of 5 tokens"),
        ({"targets": torch.tensor([0, 0, -1])}, r"targets\[2\] is -1.*takes the ignore_index, -100"),
        ({"targets": torch.tensor([0, 4, 0]), "vocab_size": 4}, r"targets\[1\] is 4, outside"),
        ({"vocab_size": 6}, "vocab_size is 6, but 1 shard.* of 5 columns allow 1 to 5"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
    ],
)
def test_wrong_logits_are_refused(change, message):
    arguments = {"logits": torch.zeros(3, 5), "targets": torch.tensor([0, 1, 2]), **change}
    with pytest.raises(ValueError, match=message):
        logprob_and_entropy(arguments.pop("logits"), arguments.pop("targets"), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, 2, 4)}, r"hidden must be \[tokens, hidden\]"),
        ({"weight": torch.zeros(5)}, r"weight must be \[vocabulary/TP, hidden\]"),
        ({"weight": torch.zeros(5, 3)}, r"hidden \(3, 4\) and weight \(5, 3\) must agree"),
        ({"weight": torch.zeros(5, 4).bfloat16()}, "both must have one type and device"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, r"targets must be \[tokens\] = \[3\]"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1, got 0"),
        ({"gradient_accumulation_fusion": True}, "needs weight.main_grad"),
    ],
)
def test_wrong_hidden_or_weight_is_refused(change, message):
    weight = torch.zeros(5, 4, requires_grad=True)
    arguments = {"hidden": torch.zeros(3, 4), "weight": weight, "targets": torch.tensor([0, 1, 2]), **change}
    with pytest.raises(ValueError, match=message):
        linear_logprob_and_entropy(
            arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("targets"), **arguments
        )


def test_entropy_stays_exact_where_the_usual_formula_cancels(device):
    """m + log S − Σp·x is off by 1e-3 at logits near 1e4; uniform logits show it plainly."""
    logits = torch.full((2, 1024), 9876.5, device=device)
    _, entropy = logprob_and_entropy(logits, torch.tensor([0, 1], device=device))
    assert entropy.tolist() == pytest.approx([math.log(1024)] * 2, abs=1e-6)


@pytest.mark.gpu
def test_target_outside_the_vocabulary_on_cuda():
    logits, targets = torch.zeros(2, 4, device="cuda"), torch.tensor([0, 4], device="cuda")
    with debug_checks(), pytest.raises(ValueError, match="outside the vocabulary"):
        logprob_and_entropy(logits, targets)
    script = (
        "import torch; from megatron_empg.vocab_parallel import logprob_and_entropy as f;"
        "f(torch.zeros(2, 4, device='cuda'), torch.tensor([0, 4], device='cuda')); torch.cuda.synchronize()"
    )  # in a process of its own: a device assert ends the CUDA context
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "assert" in done.stderr


def test_default_chunk_is_bounded_by_memory_and_by_the_tokens():
    from megatron_empg.vocab_parallel.chunk import default_chunk

    cpu, cuda = "cpu", "cuda"
    assert default_chunk(1024, 75_968, cpu) == 256, "a quarter of the tokens"
    assert default_chunk(10**6, 75_968, cpu) == 441, "128 MiB of float32"
    assert default_chunk(100, 75_968, cpu) == 128, "not below what a product needs to be fast"
    assert default_chunk(65_536, 151_936 // 8, cuda) * (151_936 // 8) <= 1 << 27
    assert default_chunk(65_536, 151_936, cuda) == 2048

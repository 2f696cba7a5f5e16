"""The definition, dense and in float64: what every other implementation here is compared with."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def dense_logprob_and_entropy(
    logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    *,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    ignore_index: int = -100,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """log p(target) and H = −Σ p·log p of p = softmax(logits/τ), by PyTorch's own float64 operations.

    `logits` holds the whole vocabulary, padded beyond `vocab_size`. Gradients are autograd's.
    """
    keep = targets != ignore_index
    real = logits[:, :vocab_size].double()[keep]
    log_p = (real / temperature).log_softmax(-1)
    log_prob = log_p.gather(1, targets[keep].long().unsqueeze(1)).squeeze(1)
    # Where p is 0 its log is -inf; replaced before the product, so that neither value nor gradient is NaN.
    possible = log_p.masked_fill(log_p == -torch.inf, 0)
    entropy = -(log_p.exp() * possible).sum(-1)
    zeros = torch.zeros(logits.shape[0], dtype=torch.float64, device=logits.device)
    return zeros.masked_scatter(keep, log_prob), zeros.masked_scatter(keep, entropy)

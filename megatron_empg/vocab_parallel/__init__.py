"""Log-prob and entropy of a policy whose vocabulary is sharded over tensor-parallel ranks."""

from megatron_empg.vocab_parallel.debug import debug_checks
from megatron_empg.vocab_parallel.fused import linear_logprob_and_entropy
from megatron_empg.vocab_parallel.reference import dense_logprob_and_entropy
from megatron_empg.vocab_parallel.sharded import logprob_and_entropy

__all__ = ["debug_checks", "dense_logprob_and_entropy", "linear_logprob_and_entropy", "logprob_and_entropy"]

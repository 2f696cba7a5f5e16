"""A random policy that vLLM can run on CPU and that ends its turns now and then."""

from pathlib import Path
from typing import Any

import torch

from tests.support.tokenizers_for_tests import make_tokenizer

END_OF_TEXT, END_OF_TURN = 0, 2  # ids in the ChatML test tokenizer
MAX_MODEL_LEN = 512


def save_policy(folder: Path, *, seed: int = 0) -> Any:
    """Tokenizer and float32 Qwen2 in `folder`; returns the Hugging Face model.

    vLLM's CPU attention needs heads of 32 or more. Embedding and head are tied, which vLLM reloads differently.
    The model ends a turn about one time in fifteen and never ends the text: dimension 0 of every hidden state is
    positive, and as rows of the head these two tokens read it more and less than the others.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer("chatml")
    tokenizer.eos_token = "<|endoftext|>"  # vLLM stops at it always, at the end of a turn only when told
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=MAX_MODEL_LEN,
        initializer_range=0.25,
        tie_word_embeddings=True,
        eos_token_id=END_OF_TEXT,
    )
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[0] = 0.0  # nothing but the embedding writes dimension 0
        model.model.norm.weight[0] = 40.0
        embedding = model.model.embed_tokens.weight
        embedding[:, 0] = 1.0
        embedding[END_OF_TURN, 0] = 2.0
        embedding[END_OF_TEXT, 0] = -10.0
    model.save_pretrained(folder)
    return model


class ModelSource:
    """A WeightSource over a Hugging Face model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, p.dtype, tuple(p.shape)) for name, p in self.model.named_parameters()]

    def __iter__(self):
        for name, parameter in self.model.named_parameters():
            yield name, parameter.detach()


def perturb(model: Any, seed: int) -> None:
    """Other weights, in place. Dimension 0 stays, so turns still end."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.05 * torch.randn(parameter.shape, generator=generator)
            if "embed" in name:
                noise[:, 0] = 0.0
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                noise[0] = 0.0
            parameter.add_(noise)


@torch.no_grad()
def logprobs_of(model: Any, tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    """float64 log-prob of every token but the first, given those before it."""
    logits = model(torch.tensor([tokens])).logits[0, :-1].double() / temperature
    chosen = torch.tensor(tokens[1:]).unsqueeze(-1)
    return logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)


@torch.no_grad()
def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]

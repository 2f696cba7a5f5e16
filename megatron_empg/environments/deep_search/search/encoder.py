"""Sentences to vectors, by a model of the E5, BGE or GTE kind in a local folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from megatron_empg.environments.deep_search.search.errors import MissingPackageError, SearchError

Pooling = Literal["mean", "first"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class Encoder(Protocol):
    """Vectors of length 1, whose inner product says how near two texts are."""

    @property
    def name(self) -> str:
        """Of the model and how it is used: vectors of different names cannot be compared."""
        ...

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [text, dimension]."""
        ...

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [text, dimension]."""
        ...


@dataclass(frozen=True)
class EncoderSettings:
    """How a model wants its texts. The defaults are E5's; BGE has `pooling` "first" and no passage prefix."""

    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    pooling: Pooling = "mean"
    tokens: int = 256
    """Of a text; what is behind them does not count."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is {self.pooling!r}; allowed: {', '.join(POOLINGS)}")
        if self.tokens < 1:
            raise ValueError(f"tokens is {self.tokens}; it must be 1 or more")


class SentenceEncoder:
    """A model that transformers can load, from safetensors and without code of its own."""

    def __init__(self, folder: Path, settings: EncoderSettings | None = None, device: str = "cpu") -> None:
        """Raises SearchError for a folder without a model."""
        self.settings = settings or EncoderSettings()
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise MissingPackageError(f"dense search needs torch and transformers: {error}") from None
        if not (Path(folder) / "config.json").is_file():
            raise SearchError(f"{folder} holds no model (no config.json); give the folder of a sentence encoder")
        self._torch = torch
        self._lock = threading.Lock()
        self._device = device
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
        self._model = model.to(device).eval()
        self.name = f"{Path(folder).resolve().name} {self.settings}"

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode([self.settings.query_prefix + text for text in texts])

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        return self._encode([self.settings.passage_prefix + text for text in texts])

    def _encode(self, texts: list[str]) -> np.ndarray:
        torch = self._torch
        with self._lock:  # a tokenizer keeps the last call's lengths, and threads would change them for each other
            given = self._tokenizer(
                texts, padding=True, truncation=True, max_length=self.settings.tokens, return_tensors="pt"
            )
        given = given.to(self._device)
        with torch.inference_mode():
            hidden = self._model(**given).last_hidden_state.float()
        if self.settings.pooling == "first":
            pooled = hidden[:, 0]
        else:
            mask = given["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        vectors: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors

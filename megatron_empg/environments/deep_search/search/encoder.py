"""Sentences to vectors, by a model of the E5, BGE or GTE kind in a local folder."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from megatron_empg.environments.deep_search.search.errors import MissingPackageError, SearchError
from megatron_empg.environments.settings import EnvironmentSettings, PlainPath

if TYPE_CHECKING:
    import numpy as np

Pooling = Literal["mean", "first"]
Engine = Literal["faiss", "numpy"]


class Encoder(Protocol):
    """Vectors of length 1, whose inner product says how near two texts are."""

    @property
    def name(self) -> str:
        """Names the model and how it is used: vectors of different names cannot be compared."""
        ...

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [text, dimension]."""
        ...

    def passages(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [text, dimension]."""
        ...


class EncoderSettings(EnvironmentSettings):
    """A sentence encoder, and how it wants its texts. The defaults are E5's; BGE has pooling "first" and no
    passage prefix."""

    path: PlainPath
    """The model's folder."""
    query_prefix: str = "query: "
    """What stands before a query."""
    passage_prefix: str = "passage: "
    """What stands before a document, as when the vectors were made."""
    pooling: Pooling = "mean"
    """A text's vector: the mean over its tokens, or the first token's. As when the vectors were made."""
    tokens: Annotated[int, Field(ge=1)] = 256
    """Of a text; what is behind them does not count. As when the vectors were made."""
    engine: Engine = "faiss"
    """What looks vectors up: faiss, which has them all in memory, or numpy, which compares a query with every one
    on the disk: as exact, slower, and already installed."""

    @property
    def kind_of_vectors(self) -> str:
        """The same for settings whose vectors of documents are the same."""
        name = self.path.resolve().name
        return f"{name}, passages behind {self.passage_prefix!r}, {self.tokens} tokens, pooling {self.pooling}"


class SentenceEncoder:
    """A model that transformers can load, from safetensors and without code of its own."""

    def __init__(self, settings: EncoderSettings, device: str = "cpu") -> None:
        """Raises SearchError for a folder without a model, MissingPackageError."""
        self.settings = settings
        folder = settings.path
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise MissingPackageError(f"dense search needs torch and transformers: {error}") from None
        if not (folder / "config.json").is_file():
            raise SearchError(f"{folder} holds no model (no config.json); give the folder of a sentence encoder")
        self._torch = torch
        self._lock = threading.Lock()
        self._device = device
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        model = AutoModel.from_pretrained(folder, use_safetensors=True, **local)
        self._model = model.to(device).eval()
        self.name = settings.kind_of_vectors

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

"""`empg index`: documents to an index that Deep Search and the search server open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_empg.common.options import number
from megatron_empg.environments.deep_search.search.bm25 import Bm25

if TYPE_CHECKING:
    from megatron_empg.environments.deep_search.search.encoder import SentenceEncoder


def _verify(folder: Path | None) -> None:
    """Answers `--verify`, which wants no corpus, and ends the command."""
    if folder is None:
        return
    from megatron_empg.environments.deep_search.search.dense import verify_vectors
    from megatron_empg.environments.deep_search.search.manifest import verify_files

    manifest = verify_files(folder)
    verify_vectors(folder)
    typer.echo(f"{folder}: every file is as it was built; {manifest.documents:,} documents")
    raise typer.Exit()


Corpus = Annotated[
    Path,
    typer.Argument(help='JSON lines, gzip or not: {"id", "contents": "Title\\nbody"} or {"id", "title", "text"}.'),
]
Out = Annotated[Path, typer.Argument(help="The folder to write; an index of the same corpus is left as it is.")]
K1 = Annotated[float, typer.Option(callback=number(above=0), help="BM25's k1.")]
B = Annotated[float, typer.Option(callback=number(), help="BM25's b, from 0 to 1.")]
StopWords = Annotated[str, typer.Option(help="Words to leave out: none or english.")]
Encoder = Annotated[
    Path | None, typer.Option(help="The folder of a sentence encoder (E5): vectors for dense search as well.")
]
Device = Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1, …")]
PassagePrefix = Annotated[str, typer.Option(help="What the encoder wants before a document.")]
Pooling = Annotated[str, typer.Option(help="A document's vector: mean (E5) or first (BGE).")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of a document that the encoder reads.")]
Verify = Annotated[
    Path | None,
    typer.Option(
        callback=_verify,
        is_eager=True,
        metavar="FOLDER",
        help="Build nothing: read this index whole and compare all its files with their checksums.",
    ),
]


def index(
    corpus: Corpus,
    out: Out,
    k1: K1 = Bm25.k1,
    b: B = Bm25.b,
    stop_words: StopWords = "none",
    encoder: Encoder = None,
    device: Device = "cpu",
    passage_prefix: PassagePrefix = "passage: ",
    pooling: Pooling = "mean",
    tokens: Tokens = 256,
    verify: Verify = None,
) -> None:
    """Index the documents of a corpus for search, in bounded memory."""
    from megatron_empg.environments.deep_search.search.index_build import build_index
    from megatron_empg.environments.deep_search.search.words import WordRules

    try:
        bm25 = Bm25(k1, b)
        rules = WordRules(stop_words)  # type: ignore[arg-type]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    made = None
    if encoder is not None:
        # What is wrong with the encoder must be told before hours of building.
        given = {"path": encoder, "passage_prefix": passage_prefix, "pooling": pooling, "tokens": tokens}
        made = _encoder(given, device)
    build_index(corpus, out, bm25=bm25, rules=rules, progress=typer.echo)
    if made is not None:
        from megatron_empg.environments.deep_search.search.dense import build_dense

        build_dense(out, made, typer.echo)


def _encoder(given: dict[str, Any], device: str) -> SentenceEncoder:
    """Raises typer.BadParameter for settings that the encoder cannot have."""
    from megatron_empg.environments.deep_search.search.encoder import EncoderSettings, SentenceEncoder
    from megatron_empg.environments.settings import read_settings

    try:
        settings = read_settings(EncoderSettings, given, "encoder")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    assert isinstance(settings, EncoderSettings)
    return SentenceEncoder(settings, device=device)

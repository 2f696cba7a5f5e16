"""`empg index`: documents to an index that Deep Search and the search server open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.common.options import number
from megatron_empg.environments.deep_search.search.bm25 import Bm25


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


def index(
    corpus: Annotated[
        Path,
        typer.Argument(
            help='JSON lines, gzip or not: {"id", "contents": "Title\\nbody"} or {"id", "title", "text"}.'
        ),
    ],
    out: Annotated[
        Path, typer.Argument(help="The folder to write; an index of the same corpus is left as it is.")
    ],
    k1: Annotated[float, typer.Option(callback=number(above=0), help="BM25's k1.")] = Bm25.k1,
    b: Annotated[float, typer.Option(callback=number(), help="BM25's b, from 0 to 1.")] = Bm25.b,
    stop_words: Annotated[str, typer.Option(help="Words to leave out: none or english.")] = "none",
    encoder: Annotated[
        Path | None, typer.Option(help="The folder of a sentence encoder (E5): vectors for dense search as well.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda, cuda:1, …")] = "cpu",
    passage_prefix: Annotated[str, typer.Option(help="What the encoder wants before a document.")] = "passage: ",
    pooling: Annotated[str, typer.Option(help="A document's vector: mean (E5) or first (BGE).")] = "mean",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a document that the encoder reads.")] = 256,
    verify: Annotated[
        Path | None,
        typer.Option(
            callback=_verify,
            is_eager=True,
            metavar="FOLDER",
            help="Build nothing: read this index whole and compare all its files with their checksums.",
        ),
    ] = None,
) -> None:
    """Index the documents of a corpus for search, in bounded memory."""
    from megatron_empg.environments.deep_search.search.index_build import build_index
    from megatron_empg.environments.deep_search.search.words import WordRules

    try:
        bm25 = Bm25(k1, b)
        rules = WordRules(stop_words)  # type: ignore[arg-type]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if encoder is None:
        build_index(corpus, out, bm25=bm25, rules=rules, progress=typer.echo)
        return

    from megatron_empg.environments.deep_search.search.dense import build_dense
    from megatron_empg.environments.deep_search.search.encoder import EncoderSettings, SentenceEncoder
    from megatron_empg.environments.settings import read_settings

    given = {"path": encoder, "passage_prefix": passage_prefix, "pooling": pooling, "tokens": tokens}
    try:
        settings = read_settings(EncoderSettings, given, "encoder")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    assert isinstance(settings, EncoderSettings)
    # What is wrong with the encoder must be told before hours of building.
    made = SentenceEncoder(settings, device=device)
    build_index(corpus, out, bm25=bm25, rules=rules, progress=typer.echo)
    build_dense(out, made, typer.echo)

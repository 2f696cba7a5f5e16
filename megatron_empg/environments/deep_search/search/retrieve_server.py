"""A search server of the peers' protocol over an index, with pages by title as an extension.

    EMPG_SEARCH_TOKEN=… python -m megatron_empg.environments.deep_search.search.retrieve_server INDEX --port 8000

POST /retrieve takes {"queries": [TEXT, ...], "topk": 3, "return_scores": true}, answers {"result": [[{"document":
{"id", "contents": "Title\\nbody"}, "score"}, ...], ...]}; without scores a result is the document itself.
POST /visit takes {"title": TEXT} and answers {"result": {"document": ...}}, or null where there is no such page.
GET /health tells the number of documents. Every route wants the server's token.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from megatron_empg.environments.deep_search import serving
from megatron_empg.environments.deep_search.search.bm25_index import LONGEST_QUERY, MOST_RESULTS, SearchIndex
from megatron_empg.environments.deep_search.search.corpus_lines import join_contents
from megatron_empg.environments.deep_search.serving import BadRequest

if TYPE_CHECKING:
    from starlette.applications import Starlette

MOST_QUERIES = 512
MOST_CHARACTERS = 4 << 20
"""Of the documents of one answer; what is over it is left out of the longest documents."""
DEFAULT_TOP_K = 3


def application(index: SearchIndex, token: str) -> Starlette:
    """The server as an ASGI application."""
    answers = {"/retrieve": partial(_retrieve, index), "/visit": partial(_visit, index)}
    return serving.application(answers, {"documents": len(index)}, token)


def _retrieve(index: SearchIndex, body: dict[str, Any]) -> dict[str, Any]:
    """Raises BadRequest."""
    queries, top_k = body.get("queries"), body.get("topk")
    if top_k is None:
        top_k = DEFAULT_TOP_K
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
        raise BadRequest('"queries" is a list of texts')
    if len(queries) > MOST_QUERIES:
        raise BadRequest(f'"queries" holds {len(queries)} queries, more than {MOST_QUERIES}', status=413)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= MOST_RESULTS:
        raise BadRequest(f'"topk" is a whole number from 1 to {MOST_RESULTS}')
    longest = max(map(len, queries), default=0)
    if longest > LONGEST_QUERY:
        raise BadRequest(f"a query has {longest} characters, more than {LONGEST_QUERY}", status=413)
    share = MOST_CHARACTERS // max(1, len(queries) * top_k)
    scored = body.get("return_scores") is True
    found = []
    for query in queries:
        results = []
        for hit in index.search(query, top_k):
            document = {"id": hit.id, "contents": join_contents(hit.title, hit.text)[:share]}
            results.append({"document": document, "score": hit.score} if scored else document)
        found.append(results)
    return {"result": found}


def _visit(index: SearchIndex, body: dict[str, Any]) -> dict[str, Any]:
    """Raises BadRequest."""
    title = body.get("title")
    if not isinstance(title, str):
        raise BadRequest('"title" is a text')
    if len(title) > LONGEST_QUERY:
        raise BadRequest(f"the title has {len(title)} characters, more than {LONGEST_QUERY}", status=413)
    page = index.page(title)
    if page is None:
        return {"result": None}
    document = {"contents": join_contents(page.title, page.text)[:MOST_CHARACTERS]}
    return {"result": {"document": document}}


def main() -> None:
    """Serve an index until the process that started this one ends."""
    serving.serve(lambda path, token: application(SearchIndex.open(path), token))


if __name__ == "__main__":
    main()

"""Deep Search: answer multi-hop questions by `search` and `visit` over a corpus of real facts."""

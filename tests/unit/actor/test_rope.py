"""One rotary table serves every length."""

import functools
from types import SimpleNamespace

import torch

from megatron_empg.upstream.megatron_model import one_rotary_table


class Embedding(torch.nn.Module):
    """As Megatron's: a table by number of positions, the last 32 kept."""

    @functools.lru_cache(maxsize=32)  # noqa: B019
    def forward(self, positions: int, offset: int = 0, packed_seq: bool = False) -> torch.Tensor:
        return (torch.arange(positions) + offset)[:, None] * torch.tensor([1.0, 0.5])


def test_tables_of_all_lengths_are_starts_of_one() -> None:
    model = SimpleNamespace(rotary_pos_emb=Embedding())
    Embedding.forward.cache_clear()
    one_rotary_table(model, 64)
    tables = {length: model.rotary_pos_emb(length, packed_seq=True) for length in range(1, 65)}
    for length, table in tables.items():
        assert torch.equal(table, Embedding()(length, packed_seq=False))
        assert table.data_ptr() == tables[64].data_ptr(), "memory of its own"
    assert len(model.rotary_pos_emb(70, packed_seq=True)) == 70, "beyond the table"
    assert torch.equal(model.rotary_pos_emb(5), tables[5])

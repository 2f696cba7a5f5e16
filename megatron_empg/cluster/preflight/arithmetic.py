"""Does a GPU multiply? Matrix products whose results are known without multiplying, compared bit by bit.

A GPU with a broken unit trains on, to a policy that is worth nothing; neither NVML nor ECC sees it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from megatron_empg.cluster.preflight.facts import Product
from megatron_empg.common.dtypes import name_of

if TYPE_CHECKING:
    import torch

    Multiply = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SIZE = 4096
"""Rows and columns: enough tiles for every multiprocessor."""
TURNS = 4
_SUM = 48
"""What each row of the left matrix gives with each column of the right one, but for sign and factor. All results
and all sums on the way are whole numbers that bfloat16 and float32 hold exactly, in any order of adding."""


def read_products(limit: float) -> list[Product]:
    """Every GPU that torch sees, all at once; one that does not finish within ``limit`` seconds is at fault."""
    import torch

    if not torch.cuda.is_available():
        return []
    products = [_product(index) for index in range(torch.cuda.device_count())]
    threads = [threading.Thread(target=_fill, args=(product,), daemon=True) for product in products]
    for thread in threads:
        thread.start()
    until = time.monotonic() + limit
    answers = []
    for product, thread in zip(products, threads, strict=True):
        thread.join(max(0.0, until - time.monotonic()))
        late = [f"matrix products did not end within {limit:.0f} s"] if thread.is_alive() else []
        answers.append(product.model_copy(update={"faults": [*product.faults, *late]}))
    return answers


def _product(index: int) -> Product:
    import torch

    try:
        return Product(index=index, uuid=str(torch.cuda.get_device_properties(index).uuid))
    except (RuntimeError, AttributeError):  # found out again, and reported, where it multiplies
        return Product(index=index)


def _fill(product: Product) -> None:
    import torch

    try:
        product.faults = find_faults(torch.device("cuda", product.index))
    except RuntimeError as error:
        product.faults = [f"matrix product failed: {str(error).splitlines()[0]}"]


def find_faults(
    device: torch.device, *, size: int = SIZE, turns: int = TURNS, multiply: Multiply | None = None
) -> list[str]:
    """What is wrong with products in bfloat16 and float32 on the device; a line a type at most."""
    import torch

    multiply = multiply or torch.mm
    faults = []
    for dtype in (torch.bfloat16, torch.float32):
        for turn in range(turns):
            left, right, expected = known_product(size, dtype, seed=turn)
            found = multiply(left.to(device), right.to(device)).to("cpu")
            if fault := _compare(found, expected):
                faults.append(f"{name_of(dtype)}: {fault}")
                break
    return faults


def known_product(size: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two dense matrices on the CPU and their product, all [size, size]."""
    import torch

    random = torch.Generator().manual_seed(seed)

    def signs() -> torch.Tensor:
        return torch.randint(0, 2, (size,), generator=random) * 2 - 1

    rows, columns = signs() * 2, signs()
    inner = signs()
    agree = torch.ones(size, dtype=torch.int64)
    agree[: (size - _SUM) // 2] = -1
    agree = agree[torch.randperm(size, generator=random)]
    left = torch.outer(rows, inner).to(dtype)
    right = torch.outer(inner * agree, columns).to(dtype)
    return left, right, (_SUM * torch.outer(rows, columns)).to(dtype)


def _compare(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    wrong = found != expected  # true of NaN too
    count = int(wrong.sum())
    if not count:
        return None
    row, column = wrong.nonzero()[0].tolist()
    return (
        f"{count} of {wrong.numel()} elements of a matrix product are wrong, the first in row {row}, column "
        f"{column}: {found[row, column].item():g} instead of {expected[row, column].item():g}"
    )

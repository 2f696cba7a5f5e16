"""Matrix products with known results: exact on a device that multiplies, and told where one does not."""

import pytest
import torch

from megatron_empg.cluster.preflight.arithmetic import SIZE, find_faults, known_product

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_results_are_known_and_exact_in_any_order_of_adding(dtype: torch.dtype) -> None:
    left, right, expected = known_product(256, dtype, seed=3)
    assert torch.equal(torch.mm(left.long(), right.long()), expected.long())
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.mm(left[:, order], right[order]), expected)
    assert left.count_nonzero() == right.count_nonzero() == 256 * 256, "dense"
    other = known_product(256, dtype, seed=4)
    assert not torch.equal(other[0], left)
    assert expected.abs().max() < 256
    assert SIZE * 2 < 2**24, "sums on the way fit float32's mantissa"


def test_a_device_that_multiplies_has_no_fault() -> None:
    assert find_faults(CPU, size=256) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_wrong_element_is_told_with_its_place(dtype: torch.dtype, value: float) -> None:
    def broken(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        product = torch.mm(left, right)
        if left.dtype == dtype:
            product[17, 200] = value
        return product

    (fault,) = find_faults(CPU, size=256, multiply=broken)
    assert fault.startswith(f"{str(dtype).removeprefix('torch.')}: 1 of 65536 elements")
    assert f"in row 17, column 200: {value:g} instead of " in fault


def test_an_error_in_a_later_turn_is_found() -> None:
    turns = []

    def broken(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        turns.append(left.dtype)
        right = right.clone()
        if len(turns) == 3:
            right[5, 7] *= -1  # as a flipped bit of an operand: a whole column of the product
        return torch.mm(left, right)

    (fault,) = find_faults(CPU, size=256, turns=4, multiply=broken)
    assert fault.startswith("bfloat16: 256 of 65536")


@pytest.mark.gpu
def test_every_gpu_here_multiplies() -> None:
    from megatron_empg.cluster.preflight.arithmetic import read_products

    products = read_products(60.0)
    assert len(products) == torch.cuda.device_count()
    assert all(not product.faults and product.uuid for product in products)

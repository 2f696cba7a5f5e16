"""The Triton kernels compile for a GPU (sm_90) down to machine code, which takes no GPU.

The interpreter accepts more than the compiler does, so this is what a machine without CUDA can prove besides.
"""

import pytest
import torch

triton = pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("logits", "wide"), [("fp32", "fp32"), ("bf16", "fp32"), ("fp16", "fp32"), ("fp64", "fp64")]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kernels_compile(logits: str, wide: str, temperature: float) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from megatron_empg.vocab_parallel import triton_kernels

    if not isinstance(triton_kernels._gradient_kernel, triton.JITFunction):
        pytest.skip("Triton was imported as an interpreter")
    rows = {"targets": "*i64", "keep": "*i1", "row_stride": "i64", "logits": f"*{logits}", "width": "i32"}
    per_token = dict.fromkeys(("maximum", "offset", "slope", "at_target"), f"*{wide}")
    signatures = {
        triton_kernels._statistics_kernel: {**rows, "stats": f"*{wide}", "tokens": "i32"},
        triton_kernels._gradient_kernel: {
            **rows, **per_token, "out": f"*{logits}", "out_stride": "i64", "columns_total": "i32",
        },
    }  # fmt: skip
    constants = {"INVERSE_TEMPERATURE": 1 / temperature, "BLOCK": triton_kernels.LARGEST_BLOCK}
    for kernel, signature in signatures.items():
        source = ASTSource(
            fn=kernel,
            signature=signature | dict.fromkeys(constants, "constexpr"),
            constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        )
        compiled = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": triton_kernels.WARPS}
        )
        assert len(compiled.asm["cubin"]) > 0
    assert not torch.cuda.is_initialized()

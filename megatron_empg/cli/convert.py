"""`empg convert`: checkpoints between Hugging Face and Megatron, and whether they compute the same."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from megatron_empg.common.options import CheckedApp, number

app = CheckedApp(
    help="Convert checkpoints between Hugging Face and Megatron; compare what they compute.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Source = Annotated[Path, typer.Argument(help="A Hugging Face folder or a Megatron checkpoint.")]
Destination = Annotated[Path, typer.Argument(help="A folder that does not exist.")]
Parallel = Annotated[int, typer.Option(min=1, help="Chooses whose part lies in which file; any layout loads it.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as stored unless given.")]
Like = Annotated[Path | None, typer.Option(help="Configuration and tokenizer, where SOURCE has none.")]
ShardGib = Annotated[
    float, typer.Option(callback=number(above=0), help="Largest file, which is what is held in memory.")
]
Verify = Annotated[bool, typer.Option("--verify", help="Compare every tensor, and logits where memory allows.")]
Sequences = Annotated[int, typer.Option(min=1)]
Length = Annotated[int, typer.Option(min=2, help="Tokens of each.")]
Tolerance = Annotated[float, typer.Option(callback=number(), help="Above it the command fails.")]


@app.command()
def to_megatron(
    source: Source,
    destination: Destination,
    tensor_parallel: Parallel = 1,
    pipeline_parallel: Parallel = 1,
    dtype: Dtype = None,
    like: Like = None,
    max_shard_gib: ShardGib = 5.0,
    verify: Verify = False,
) -> None:
    """Write a Megatron checkpoint (torch_dist). The same command goes on where one was interrupted."""
    from megatron_empg.weights.checkpoints import conversion
    from megatron_empg.weights.checkpoints.dtypes import dtype_named

    with _bar("converting") as progress:
        conversion.to_megatron(
            source, destination, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel,
            dtype=dtype_named(dtype), like=like, shard_bytes=_bytes(max_shard_gib), progress=progress,
        )  # fmt: skip
    if verify:
        _verify(source, destination, like, tolerance=1e-3 if dtype is None else math.inf)


@app.command()
def to_hf(
    source: Source,
    destination: Destination,
    dtype: Dtype = None,
    like: Like = None,
    max_shard_gib: ShardGib = 5.0,
    verify: Verify = False,
) -> None:
    """Write a Hugging Face folder (safetensors). The same command goes on where one was interrupted."""
    from megatron_empg.weights.checkpoints import conversion
    from megatron_empg.weights.checkpoints.dtypes import dtype_named

    with _bar("converting") as progress:
        conversion.to_hugging_face(
            source, destination, dtype=dtype_named(dtype), like=like, shard_bytes=_bytes(max_shard_gib),
            progress=progress,
        )  # fmt: skip
    if verify:
        _verify(source, destination, like, tolerance=1e-3 if dtype is None else math.inf)


@app.command()
def compare(
    one: Source,
    other: Source,
    like: Like = None,
    sequences: Sequences = 4,
    length: Length = 64,
    tolerance: Tolerance = 1e-3,
) -> None:
    """Logits and log-probs of two checkpoints of one model on random tokens, in float32."""
    from megatron_empg.actor.compare_logits import compare_logits
    from megatron_empg.weights.checkpoints.errors import CheckpointError

    found = compare_logits(one, other, like=like, count=sequences, length=length)
    typer.echo(
        f"largest difference over {found.tokens} tokens: logits {found.logits:.2e}, "
        f"log-probs {found.logprobs:.2e} (mean {found.mean_logprobs:.2e})"
    )
    if not found.logits <= tolerance:
        raise CheckpointError(f"the logits of {one} and {other} differ by more than {tolerance}")


def _verify(source: Path, destination: Path, like: Path | None, *, tolerance: float) -> None:
    from megatron_empg.actor.compare_logits import fits
    from megatron_empg.weights.checkpoints import conversion
    from megatron_empg.weights.mapping.model_config import ModelConfig

    with _bar("comparing") as progress:
        tensors = conversion.verify(source, destination, like=like, progress=progress)
    typer.echo(f"{tensors} tensors equal bit for bit")
    if fits(ModelConfig.from_folder(destination)):
        compare(source, destination, like, tolerance=tolerance)
    else:
        typer.echo("logits not compared: not enough memory for the model in float32")


def _bytes(gib: float) -> int:
    return max(1, int(gib * 2**30))


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (f"[bold]{what}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

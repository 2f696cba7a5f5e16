"""No module outside `megatron_empg.upstream` reaches for a library's private name or replaces something of it."""

from pathlib import Path

from tests.unit.upstream.private_names import reaches

PACKAGE = Path(__file__).resolve().parents[3] / "megatron_empg"
OF_ENGINES = {
    "megatron_empg/environments/alfworld/caches.py": "pinned in requirements-alfworld.txt, in a Python of its own",
    "megatron_empg/environments/scienceworld/gateway.py": "what clients derived from py4j's own use",
}
"""Libraries of one environment's engine, pinned with it, which tests/environments plays."""


def test_private_names_are_reached_in_upstream_alone() -> None:
    found = reaches(PACKAGE, "upstream")
    elsewhere = {reach.file for reach in found} & OF_ENGINES.keys()
    assert elsewhere == OF_ENGINES.keys(), "one is listed that reaches for nothing"
    ours = [reach for reach in found if reach.file not in elsewhere]
    assert not ours, "\n" + "\n".join(map(str, ours))


def test_upstream_itself_would_be_found() -> None:
    assert len(reaches(PACKAGE, "no such folder")) > 40


PLANTED = """
import os, sys
import torch
import torch._dynamo
import vllm.v1.engine.utils as engine_utils
from torch.distributed.checkpoint.filesystem import _StorageInfo


class Own:
    def __init__(self):
        self._mine = 1
        os._exit(self._mine)


def late(optimizer, model, given):
    from megatron.core.optimizer import make
    torch.cuda.synchronize = lambda: None
    made = make()
    made.settings.seed = 1
    made.weight.grad = None
    given._asdict()
    setattr(engine_utils, "start", None)
    model.output.forward = print
    optimizer._secret()
    getattr(optimizer, "_other", None)
    sys.modules["transformer_engine"] = None
    sys.modules.get("torch._C._distributed_c10d")
    other = Own()
    return other._mine
"""


def test_planted_reaches_are_found_and_named(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    package.joinpath("room.py").write_text(PLANTED, encoding="utf-8")
    found = reaches(package, "upstream")
    assert [(reach.line, reach.what) for reach in found] == [
        (4, "import torch._dynamo"),
        (6, "from torch.distributed.checkpoint.filesystem import _StorageInfo"),
        (17, "torch.cuda.synchronize"),
        (19, "made.settings.seed"),
        (22, "setattr(engine_utils, 'start', None)"),
        (23, "model.output.forward"),
        (24, "optimizer._secret"),
        (25, "getattr(optimizer, '_other', None)"),
        (26, "sys.modules['transformer_engine']"),
        (27, "'torch._C._distributed_c10d'"),
    ]
    assert str(found[0]).startswith(
        "package/room.py:4: import torch._dynamo: a private name of a library is reached"
    )

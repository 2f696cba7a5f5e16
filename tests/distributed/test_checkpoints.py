"""Checkpoints: training goes on bit-equal while one is written and from it; in another layout; faults named."""

import hashlib
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.distributed.actor_cases import (
    answer,
    assert_same,
    fresh_actor,
    optimizer_tensors,
    policy_loss,
    run_cases,
    sequences,
    weights_of,
    with_old_logprobs,
)
from tests.distributed.checkpoint_faults import DAMAGES, cut_short, held_writes, largest_file
from tests.distributed.ranks import run_ranks
from tests.support.models import save_random_model

LENGTHS = [120, 9, 38, 83, 77, 24]
SCHEDULE = {"schedule": "cosine", "warmup_steps": 1, "total_steps": 6}
RECIPE = {"run": {"steps": 4}}


def batches(folder: Path) -> list[Any]:
    return torch.load(folder / "batches.pt", weights_only=False)


def trained(folder: Path, layout: dict[str, Any], **settings: Any) -> Any:
    """An actor after two updates."""
    actor = fresh_actor(folder, layout, **SCHEDULE, **settings)
    for _ in range(2):
        actor.update(batches(folder), policy_loss())
    return actor


def go_on(actor: Any, folder: Path) -> dict[str, Any]:
    """Two more updates, and all that they leave behind."""
    reports = [actor.update(batches(folder), policy_loss()) for _ in range(2)]
    numbers = torch.tensor([[r.loss, r.grad_norm, r.lr] for r in reports], dtype=torch.float64)
    return {
        "numbers": numbers,
        "weights": weights_of(actor),
        "optimizer": optimizer_tensors(actor),
        "random": torch.rand(3),
    }


def checkpoints(actor: Any, root: Path, keep: int = 2) -> Any:
    from megatron_empg.actor.checkpoint import Checkpoints

    return Checkpoints(actor, root, keep=keep, recipe=RECIPE)


def save(saver: Any, step: int) -> None:
    saver.save(step)
    saver.wait()


def message_of(action: Any) -> str:
    from megatron_empg.weights.checkpoints.errors import CheckpointError

    with pytest.raises(CheckpointError) as caught:
        action()
    return str(caught.value)


# Going on in the same layout


def resumed_torch_optimizer(folder: Path) -> None:
    check_resumed(folder, {"data": 2}, "torch")


def resumed_distributed_optimizer(folder: Path) -> None:
    check_resumed(folder, {"data": 2}, "distributed", distributed_optimizer=True)


def resumed_bfloat16(folder: Path) -> None:
    """The float32 main weights must come back, not the rounded ones."""
    check_resumed(folder, {"data": 2}, "bfloat16", distributed_optimizer=True, dtype="bfloat16")


def resumed_tensor_parallel(folder: Path) -> dict[str, Any]:
    """The same at TP=2; the checkpoint stays for one rank to load."""
    return check_resumed(folder, {"tensor": 2}, "tensor")


def resumed_context_parallel(folder: Path) -> None:
    """Overlap leaves each rank with stale parameters until the next forward pass; the file must not have them."""
    check_resumed(folder, {"context": 2}, "context", distributed_optimizer=True, overlap=True)


def resumed_interleaved(folder: Path) -> dict[str, Any]:
    """Two chunks of the model on each stage; the checkpoint stays for the plain pipeline to load."""
    return check_resumed(folder, {"pipeline": 2, "virtual_pipeline": 2}, "interleaved")


def resumed_before_any_update(folder: Path) -> None:
    """Saved from an optimizer that has no state yet."""
    for name, settings in (("torch", {}), ("distributed", {"distributed_optimizer": True})):
        actor = fresh_actor(folder, {"data": 2}, **settings)
        saver = checkpoints(actor, folder / f"fresh_{name}")
        save(saver, 1)
        expected = go_on(actor, folder)
        resumed = fresh_actor(folder, {"data": 2}, **settings)
        resumed.initialise_weights(5)
        assert checkpoints(resumed, saver.root).load_newest() == 1
        assert_same_end(go_on(resumed, folder), expected)


def check_resumed(folder: Path, layout: dict[str, Any], name: str, **settings: Any) -> dict[str, Any]:
    """Two updates, a checkpoint written during two more: those are bit-equal in an actor that loads it."""
    actor, root = trained(folder, layout, **settings), folder / name
    saver = checkpoints(actor, root)
    with held_writes() as released:
        saver.save(2)
        saved = weights_of(actor)
        expected = go_on(actor, folder)
        assert psutil.Process().children(recursive=True) == [], "processes that would outlive a killed rank"
        saver.poll()
        assert saver.saving
        assert [path.name for path in root.iterdir()] == ["step_000002.writing"]
        released.set()
        saver.wait()
    assert not saver.saving
    del actor
    resumed = fresh_actor(folder, layout, seed=99, **SCHEDULE, **settings)
    resumed.load_weights(root / "step_000002")
    assert_same(weights_of(resumed), saved)
    resumed.initialise_weights(5)
    assert checkpoints(resumed, root).load_newest() == 2
    assert_same_end(go_on(resumed, folder), expected)
    return expected


def assert_same_end(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for part in ("weights", "optimizer"):
        assert_same(actual[part], expected[part])
    assert_same([actual["numbers"], actual["random"]], [expected["numbers"], expected["random"]])


def resumed_with_other_settings(folder: Path) -> None:
    """Adam and the schedule do what the run is told now, on the moments that were saved."""
    other = {"lr": 7e-4, "betas": (0.7, 0.8), "weight_decay": 0.05, "clip_grad": 0.25}
    for name, settings in (("torch", {}), ("distributed", {"distributed_optimizer": True})):
        actor = fresh_actor(folder, {"data": 2}, **other, **settings)
        assert checkpoints(actor, folder / name).load_newest() == 2
        report = actor.update(batches(folder), policy_loss())
        assert report.lr == pytest.approx(7e-4)
        (part,) = getattr(actor.optimizer, "chained_optimizers", [actor.optimizer])
        assert part.config.clip_grad == 0.25
        for group in part.optimizer.param_groups:
            assert group["betas"] == (0.7, 0.8)
            assert group["lr"] == pytest.approx(7e-4)
            assert group["weight_decay"] == pytest.approx(0.05 * group["wd_mult"])
        assert {float(state["step"]) for state in part.optimizer.state.values()} == {3.0}


def shared_out(folder: Path) -> list[tuple[int, int]]:
    """(bytes written, bytes read) by this one of two ranks, with torch's and with the distributed optimizer."""
    measured = []
    for name, settings in (("torch", {}), ("distributed", {"distributed_optimizer": True})):
        written = sum(p.stat().st_size for p in (folder / name).rglob(f"__{dist.get_rank()}_*.distcp"))
        actor = fresh_actor(folder, {"data": 2}, **SCHEDULE, **settings)
        measured.append((written, bytes_read(actor, folder / name)))
    return measured


def bytes_read(actor: Any, root: Path) -> int:
    """Of tensors, that this rank asks the files for."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.strategies.torch import TorchDistLoadShardedStrategy

    asked: list[int] = []
    original = TorchDistLoadShardedStrategy.load

    def counting(self: Any, state: Any, *rest: Any) -> Any:
        tensors = [value.data for value in nested_values(state)]
        asked.append(sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor)))
        return original(self, state, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchDistLoadShardedStrategy, "load", counting)
        assert checkpoints(actor, root).load_newest() == 2
    return sum(asked)


def held_in_main_memory(folder: Path) -> tuple[int, int]:
    """(elements of the optimizer's state that this rank hands to the writer, and those of the whole model)."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values

    from megatron_empg.actor import sharded_state

    actor = trained(folder, {"data": 2}, distributed_optimizer=True)
    state = sharded_state.sharded_state(actor, loading=False)
    tensors = [value.data for value in nested_values(state["optimizer"]["param_state"]) if hasattr(value, "data")]
    held = sum(tensor.numel() for tensor in tensors if tensor is not None)
    return held, 3 * sum(p.numel() for p in actor.model[0].parameters())


# Going on in another layout


def saved_tensor_pipeline(folder: Path) -> dict[str, Any]:
    actor = trained(folder, {"tensor": 2, "pipeline": 2}, distributed_optimizer=True)
    save(checkpoints(actor, folder / "tensor_pipeline"), 2)
    return go_on(actor, folder)


def loaded_data_parallel(folder: Path) -> dict[str, Any]:
    return go_on_from(folder, "tensor_pipeline", {"data": 2}, distributed_optimizer=True)


def loaded_pipeline(folder: Path) -> dict[str, Any]:
    return go_on_from(folder, "interleaved", {"pipeline": 2})


def loaded_alone(folder: Path) -> dict[str, Any]:
    return go_on_from(folder, "tensor", {})


def go_on_from(folder: Path, name: str, layout: dict[str, Any], **settings: Any) -> dict[str, Any]:
    actor = fresh_actor(folder, layout, **SCHEDULE, **settings)
    actor.initialise_weights(5)
    assert checkpoints(actor, folder / name).load_newest() == 2
    return go_on(actor, folder)


# What lies in the folder


def kept_and_described(folder: Path) -> None:
    actor, root = fresh_actor(folder, {"tensor": 2}), folder / "kept"
    saver = checkpoints(actor, root, keep=2)
    for step in (1, 2, 3):
        saver.save(step)  # each waits for the one before
    saver.wait()
    killed = checkpoints(actor, root)
    killed.save(9)  # and nothing more, as if killed
    killed._saving[1].wait()
    assert checkpoints(actor, root).load_newest() == 3
    saver.save(4)
    while saver.saving:
        saver.poll()
    assert {path.name for path in root.iterdir()} == {"step_000003", "step_000004"}
    manifest = json.loads((root / "step_000004/manifest.json").read_text())
    assert (manifest["step"], manifest["schedule_steps"], manifest["recipe"]) == (4, 0, RECIPE)
    assert (manifest["layout"]["tensor"], manifest["dtype"]) == (2, "float32")
    assert manifest["versions"].keys() == {"megatron_empg", "megatron-core", "torch", "python"}
    found = {p for p in (root / "step_000004").rglob("*") if p.is_file() and p.name != "manifest.json"}
    assert {root / "step_000004" / name for name in manifest["files"]} == found
    for name, record in manifest["files"].items():
        content = (root / "step_000004" / name).read_bytes()
        assert record == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def full_disk(folder: Path) -> dict[str, str]:
    """Rank 1 may write no file of more than 50,000 bytes; then there is no room at all."""
    from megatron_empg.actor import sharded_state

    actor, root = fresh_actor(folder, {"tensor": 2}), folder / "full"
    saver = checkpoints(actor, root)
    save(saver, 1)
    with largest_file(50_000 if dist.get_rank() == 1 else resource.RLIM_INFINITY):
        messages = {"cut": message_of(lambda: save(saver, 2))}
    size, sharded_state.size = sharded_state.size, lambda state: 1 << 60
    messages["none"] = message_of(lambda: saver.save(2))
    sharded_state.size = size
    assert [path.name for path in root.iterdir()] == ["step_000001"]
    assert checkpoints(actor, root).load_newest() == 1
    save(saver, 2)
    assert checkpoints(actor, root).load_newest() == 2
    return messages


def full_disk_alone(folder: Path) -> str:
    """No room for the smallest file, which Megatron may write before the others."""
    saver = checkpoints(fresh_actor(folder, {}), folder / "full_alone")
    with largest_file(100):
        message = message_of(lambda: save(saver, 1))
    assert list(saver.root.iterdir()) == []
    return message


# What must not be loaded


def broken(folder: Path) -> dict[str, str]:
    """The message for each kind of broken newest checkpoint."""
    actor = fresh_actor(folder, {"tensor": 2})
    messages = {}
    for kind, damage in DAMAGES.items():
        root = folder / f"broken_{kind}"
        if dist.get_rank() == 0:
            for step in (2, 4):
                shutil.copytree(folder / "tensor/step_000002", root / f"step_00000{step}")
            damage(root / "step_000004")
        dist.barrier()
        messages[kind] = message_of(checkpoints(actor, root).load_newest)
    if dist.get_rank() == 0:
        shutil.rmtree(folder / "broken_missing/step_000004")  # as the message says
        cut_short(root / "step_000002")
    dist.barrier()
    assert checkpoints(actor, folder / "broken_missing").load_newest() == 2
    messages["all"] = message_of(checkpoints(actor, root).load_newest)
    return messages


def others(folder: Path) -> dict[str, str]:
    """The message for checkpoints of something else."""
    root = folder / "tensor"
    settings = {"dtype": {"dtype": "bfloat16"}, "optimizer": {"distributed_optimizer": True}}
    messages = {
        k: message_of(checkpoints(fresh_actor(folder, {}, **v), root).load_newest) for k, v in settings.items()
    }
    shutil.copytree(root, folder / "other")
    path = folder / "other/step_000002/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"]["hidden_size"] = 128
    path.write_text(json.dumps(manifest))
    messages["model"] = message_of(checkpoints(fresh_actor(folder, {}), folder / "other").load_newest)
    return messages


FOUR_RANKS = [saved_tensor_pipeline]
RESUMED = [
    resumed_torch_optimizer, resumed_distributed_optimizer, resumed_bfloat16, resumed_tensor_parallel,
    resumed_context_parallel, resumed_interleaved, resumed_before_any_update,
]  # fmt: skip
TWO_RANKS = [
    *RESUMED, resumed_with_other_settings, shared_out, held_in_main_memory, loaded_pipeline, loaded_data_parallel,
    kept_and_described, full_disk, broken,
]  # fmt: skip
ONE_RANK = [loaded_alone, full_disk_alone, others]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoints")
    model = save_random_model(made / "model", "qwen2")
    torch.save(with_old_logprobs(model, sequences(LENGTHS)), made / "batches.pt")
    return made


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return run_ranks(run_cases, 4, FOUR_RANKS, str(folder))


@pytest.fixture(scope="module")
def two(folder: Path, four: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """After the four ranks, whose checkpoint it loads."""
    return run_ranks(run_cases, 2, TWO_RANKS, str(folder))


@pytest.fixture(scope="module")
def one(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """After the two ranks, whose checkpoint it loads."""
    return run_ranks(run_cases, 1, ONE_RANK, str(folder))


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_training_is_bit_equal(case: Any, two: list[dict[str, Any]]) -> None:
    answer(two, case)


def test_a_resumed_run_has_the_settings_it_is_given(two: list[dict[str, Any]]) -> None:
    answer(two, resumed_with_other_settings)


def test_every_rank_writes_and_reads_its_half(two: list[dict[str, Any]]) -> None:
    for first, second in zip(answer(two, shared_out, 0), answer(two, shared_out, 1), strict=True):
        for mine, other in zip(first, second, strict=True):
            assert 0.4 < mine / (mine + other) < 0.6
    sizes = answer(two, shared_out, 0), answer(two, shared_out, 1)
    for number in range(2):
        written, read = (sum(of_rank[number][i] for of_rank in sizes) for i in range(2))
        assert 0.7 * written < read < written, "the ranks read some of it twice, or not at all"


def test_a_rank_gathers_no_more_of_the_optimizer_than_it_writes(two: list[dict[str, Any]]) -> None:
    held = [answer(two, held_in_main_memory, rank) for rank in range(2)]
    assert sum(of_rank[0] for of_rank in held) == held[0][1]
    for mine, whole in held:
        assert 0.4 < mine / whole < 0.6


def test_tensor_parallel_to_one_rank(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert_alike(answer(one, loaded_alone), answer(two, resumed_tensor_parallel))


def test_tensor_and_pipeline_to_data_parallel(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    assert_alike(answer(two, loaded_data_parallel), answer(four, saved_tensor_pipeline))


def test_interleaved_to_plain_pipeline(two: list[dict[str, Any]]) -> None:
    assert_alike(answer(two, loaded_pipeline), answer(two, resumed_interleaved))


def assert_alike(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Losses, gradient norms and learning rates of two updates, and the weights after them."""
    torch.testing.assert_close(actual["numbers"], expected["numbers"], rtol=1e-5, atol=0)
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(actual["weights"][name], tensor, rtol=0, atol=1e-5, msg=name)


def test_the_newest_are_kept_with_a_manifest_each(two: list[dict[str, Any]]) -> None:
    answer(two, kept_and_described)


def test_a_full_disk_ends_by_name(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert "full_alone/step_000001 could not be saved" in answer(one, full_disk_alone)
    for rank in (0, 1):
        messages = answer(two, full_disk, rank)
        for message in messages.values():
            assert "full/step_000002 could not be saved" in message
            assert "the checkpoint of step 1 is untouched" in message
        assert "__1_" in messages["cut"]
        assert "File too large" in messages["cut"]
        assert "needs about 1073741824.0 GiB" in messages["none"]


def test_a_broken_checkpoint_is_named_with_the_last_whole_one(two: list[dict[str, Any]]) -> None:
    messages = answer(two, broken)
    assert answer(two, broken, rank=1) == messages
    told = {"truncated": ".distcp has", "missing": ".distcp is missing", "altered": ".distcp was altered"}
    for kind, words in {**told, "manifest": "step_000004 has no readable manifest.json"}.items():
        assert words in messages[kind], kind
        assert "The checkpoint of step 2 is whole: remove " in messages[kind]
        assert messages[kind].endswith("/step_000004 to go on from there")
    assert "No earlier checkpoint is whole" in messages["all"]


def test_a_checkpoint_of_something_else_is_refused(one: list[dict[str, Any]]) -> None:
    messages = answer(one, others)
    assert "another model: ['hidden_size']" in messages["model"]
    assert "set dtype to float32" in messages["dtype"]
    assert "set distributed_optimizer to False" in messages["optimizer"]

"""The variables of a task: a function of what its node says, where the user has not set them."""

import os
from pathlib import Path

from megatron_empg.launch.node_environment import (
    NodeReport,
    active_ports,
    added,
    caches_folder,
    described,
    pairs,
    read_node,
    task_variables,
)

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "CUDA_CACHE_PATH")
TRAINER_ONLY = ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF")


def variables(given: dict[str, str]) -> dict[str, str]:
    """What a task has that is `given` these."""
    return {**given, **added(task_variables(read_node(given), ""), given)}


def test_every_step_compiles_into_a_folder_of_its_node_that_is_the_users_own(tmp_path: Path) -> None:
    seen = variables({"TMPDIR": str(tmp_path)})
    folder = tmp_path / f"empg_caches_{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in CACHES:
        assert Path(seen[name]).parent == folder
    assert 1 <= int(seen["TORCHINDUCTOR_COMPILE_THREADS"]) <= 4
    assert variables({"TMPDIR": str(tmp_path)})["TRITON_CACHE_DIR"] == seen["TRITON_CACHE_DIR"], "used again"


def test_a_link_in_place_of_the_caches_is_not_followed(tmp_path: Path) -> None:
    """In a /tmp that all may write, another user could have made it."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"empg_caches_{os.getuid()}").symlink_to(tmp_path / "theirs")
    folder = Path(variables({"TMPDIR": str(tmp_path)})["TRITON_CACHE_DIR"]).parent
    assert folder.is_dir()
    assert folder.name.startswith("empg_caches.")
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_file_in_place_of_the_caches_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"empg_caches_{os.getuid()}").write_text("", encoding="utf-8")
    assert Path(caches_folder(str(tmp_path))).name.startswith("empg_caches.")


def test_without_a_place_for_caches_none_is_set(tmp_path: Path) -> None:
    assert caches_folder(str(tmp_path / "none")) == ""
    assert "TRITON_CACHE_DIR" not in added(task_variables(NodeReport(), ""), {})


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    given = dict.fromkeys(CACHES, "/mine") | {"TORCHINDUCTOR_COMPILE_THREADS": "9", "NCCL_DEBUG": "INFO"}
    seen = variables({"TMPDIR": str(tmp_path), **given})
    assert {name: seen[name] for name in given} == given


def test_what_trainer_ranks_alone_want_is_set_for_no_other_step(tmp_path: Path) -> None:
    assert not set(TRAINER_ONLY) & set(variables({"TMPDIR": str(tmp_path)}))


def test_the_network_is_the_nodes_own() -> None:
    wanted = task_variables(NodeReport("ib0", ("mlx5_0:1", "mlx5_1:1"), ""), "/runs/a")
    assert wanted["NCCL_SOCKET_IFNAME"] == "=ib0", "this very name"
    assert wanted["GLOO_SOCKET_IFNAME"] == "ib0"
    assert wanted["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_1:1"
    assert wanted["TORCH_FR_DUMP_TEMP_FILE"] == "/runs/a/flight_recorder/nccl_rank_"


def test_each_variable_is_told_with_where_it_comes_from() -> None:
    wanted = {"NCCL_DEBUG": "WARN", "NCCL_IB_HCA": "", "OMP_NUM_THREADS": "1"}
    told = described(wanted, {"OMP_NUM_THREADS": "4"})
    assert told == ["env: NCCL_DEBUG=WARN", "env: NCCL_IB_HCA not set", "env: OMP_NUM_THREADS=4 (given)"]
    assert added(wanted, {"OMP_NUM_THREADS": "4"}) == {"NCCL_DEBUG": "WARN"}


def test_ports_of_infiniband_count_where_they_are_up(tmp_path: Path) -> None:
    for device, port, state, layer in (
        ("mlx5_0", "1", "4: ACTIVE", "InfiniBand"),
        ("mlx5_1", "1", "1: DOWN", "InfiniBand"),
        ("mlx5_2", "1", "4: ACTIVE", "Ethernet"),
        ("mlx5_3", "2", "4: ACTIVE", "InfiniBand"),
    ):
        folder = tmp_path / device / "ports" / port
        folder.mkdir(parents=True)
        (folder / "state").write_text(f"{state}\n", encoding="utf-8")
        (folder / "link_layer").write_text(f"{layer}\n", encoding="utf-8")
    assert active_ports(tmp_path) == ["mlx5_0:1", "mlx5_3:2"]
    assert active_ports(tmp_path / "none") == []


def test_addresses_are_pairs() -> None:
    assert pairs("n1=10.0.0.1 n2=10.0.0.2") == {"n1": "10.0.0.1", "n2": "10.0.0.2"}
    assert pairs("") == {}

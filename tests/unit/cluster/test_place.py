"""torchrun and srun say where a process stands; what they leave out is asked for by name."""

import pytest

from megatron_empg.cluster.place import PlaceError, RankPlace

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "GROUP_RANK": "2",
    "GROUP_WORLD_SIZE": "4",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "1234",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURMD_NODENAME": "gpu-7",
    "MASTER_ADDR": "10.0.0.1",
}


def test_torchrun() -> None:
    place = RankPlace.from_environment(TORCHRUN)
    assert (place.rank, place.world_size, place.local_rank, place.node_rank, place.nodes) == (5, 8, 1, 2, 4)
    assert (place.address, place.port, place.hosts_store) == ("10.0.0.1", 1234, False)
    assert not RankPlace.from_environment(TORCHRUN | {"RANK": "0"}).hosts_store


def test_srun() -> None:
    place = RankPlace.from_environment(SRUN)
    assert (place.rank, place.world_size, place.local_rank, place.node_rank, place.nodes) == (3, 4, 1, 1, 2)
    assert (place.node, place.port, place.hosts_store) == ("gpu-7", 29500, False)
    assert RankPlace.from_environment(SRUN | {"SLURM_PROCID": "0"}).hosts_store


def test_torchrun_inside_a_slurm_step_wins() -> None:
    assert RankPlace.from_environment(SRUN | TORCHRUN).rank == 5


@pytest.mark.parametrize("environment", [{}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}])
def test_alone(environment: dict[str, str]) -> None:
    place = RankPlace.from_environment(environment)
    assert (place.rank, place.world_size, place.nodes) == (0, 1, 1)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(PlaceError, match="MASTER_ADDR is not set"):
        RankPlace.from_environment({key: value for key, value in SRUN.items() if key != "MASTER_ADDR"})
    with pytest.raises(PlaceError, match="WORLD_SIZE is 'many'"):
        RankPlace.from_environment(TORCHRUN | {"WORLD_SIZE": "many"})


def test_an_address_out_of_reach_is_named_in_time() -> None:
    place = RankPlace.from_environment(SRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    with pytest.raises(PlaceError, match=r"rank 3 on gpu-7 cannot reach rank 0 at 127\.0\.0\.1:1"):
        place.connect(1.0)

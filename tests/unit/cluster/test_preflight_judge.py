"""One bad node among good ones is named by the check it fails; what could not be checked never passes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_empg.cluster.preflight.facts import (
    ClockFacts,
    DiskFacts,
    FolderFacts,
    GpuFacts,
    GpuList,
    LimitFacts,
    NodeFacts,
    PortFacts,
    ProductFacts,
    VersionFacts,
    XidFacts,
)
from megatron_empg.cluster.preflight.judge import GIB, CheckFinding, Requirements, judge
from megatron_empg.cluster.preflight.judge_gpus import GPU_CHECKS
from megatron_empg.cluster.preflight.judge_hosts import HOST_CHECKS
from megatron_empg.cluster.preflight.report import show

CHECKS = GPU_CHECKS + HOST_CHECKS
WANTED = Requirements(pins={"vllm": "0.32.0"}, host_memory=600)


def good_gpu(index: int) -> GpuFacts:
    return GpuFacts(
        index=index,
        name="NVIDIA H100 80GB HBM3",
        uuid=f"GPU-{index}",
        memory_total=80 * GIB,
        memory_free=79 * GIB,
        ecc_on=True,
        ecc_uncorrected=0,
        remap_pending=False,
        remap_failed=False,
        throttle=[],
        power_limit=700.0,
        power_default=700.0,
        persistence=True,
        nvlinks_up=18,
        nvlinks_down=[],
    )


def good_node(number: int) -> NodeFacts:
    return NodeFacts(
        name=f"gpu-{number}",
        gpus=GpuList(driver="580.65.06", cuda_driver="13.0", gpus=[good_gpu(index) for index in range(8)]),
        products=[ProductFacts(index=index, uuid=str(index)) for index in range(8)],
        xids=[],
        versions=VersionFacts(
            torch="2.13.0+cu130",
            cuda="13.0",
            nccl="2.28.9",
            python="3.12.11",
            packages={"torch": "2.13.0+cu130", "vllm": "0.32.0+cu130"},
        ),
        infiniband=[PortFacts(name=f"mlx5_{card}/1", state="ACTIVE", rate=400.0) for card in range(8)],
        disk=DiskFacts(folder="/shared/run", free=900 * GIB, write_speed=2e9),
        shared_memory=900 * GIB,
        host_memory=1500 * GIB,
        limits=LimitFacts(nofile=1048576, memlock=-1, nproc=-1),
        busy_ports=[],
        model=FolderFacts(path="/models/q", size=60 * GIB, digest="aaaa"),
        data=[FolderFacts(path="/data", size=GIB, digest="bbbb")],
        clock=ClockFacts(offset=0.001, uncertain=0.001),
    )


def not_passed(nodes: list[NodeFacts], wanted: Requirements = WANTED) -> list[CheckFinding]:
    return [finding for finding in judge(nodes, wanted, CHECKS) if finding.status != "PASS"]


def test_good_nodes_pass_every_check() -> None:
    nodes = [good_node(number) for number in range(4)]
    assert not_passed(nodes) == []
    assert len({finding.check for finding in judge(nodes, WANTED, CHECKS)}) == len(CHECKS)


def gpu_3(**changes: Any) -> Callable[[NodeFacts], None]:
    def change(node: NodeFacts) -> None:
        assert node.gpus
        node.gpus.gpus[3] = node.gpus.gpus[3].model_copy(update=changes)

    return change


def product_3(fault: str) -> Callable[[NodeFacts], None]:
    """NVML's third, which torch calls the fifth."""

    def change(node: NodeFacts) -> None:
        assert node.products
        node.products[5] = ProductFacts(index=5, uuid="3", faults=[fault])
        node.products[3] = ProductFacts(index=3, uuid="5")

    return change


def part(name: str, value: Any = None, **changes: Any) -> Callable[[NodeFacts], None]:
    def change(node: NodeFacts) -> None:
        setattr(node, name, getattr(node, name).model_copy(update=changes) if changes else value)

    return change


def package(version: str | None) -> Callable[[NodeFacts], None]:
    return lambda node: node.versions.packages.update(vllm=version)  # type: ignore[union-attr]


def port_5(**changes: Any) -> Callable[[NodeFacts], None]:
    def change(node: NodeFacts) -> None:
        assert node.infiniband
        node.infiniband[5] = node.infiniband[5].model_copy(update=changes)

    return change


FAULTS: list[tuple[str, str, str, Callable[[NodeFacts], None]]] = [
    ("GPUs", "FAIL", "7 x NVIDIA H100", lambda node: node.gpus and node.gpus.gpus.pop()),  # type: ignore[list-item]
    ("GPUs", "FAIL", "1 x NVIDIA A100", gpu_3(name="NVIDIA A100-SXM4-80GB")),
    ("GPUs", "WARN", "8 x NVIDIA H100 80GB HBM3: the machine's bus lists 9", part("gpus", on_bus=9)),
    ("GPU memory", "FAIL", "GPU 3: 20.0 GiB are held", gpu_3(memory_free=60 * GIB)),
    ("GPU errors", "FAIL", "GPU 3: 2 uncorrectable", gpu_3(ecc_uncorrected=2)),
    ("GPU errors", "FAIL", "could not be remapped", gpu_3(remap_failed=True)),
    ("GPU errors", "FAIL", "waits for a reset", gpu_3(remap_pending=True)),
    ("GPU errors", "WARN", "ECC is off", gpu_3(ecc_on=False)),
    ("GPU errors", "SKIP", "ECC cannot be read", gpu_3(ecc_on=None)),
    ("clocks", "FAIL", "power brake", gpu_3(throttle=["power brake"])),
    ("power cap", "WARN", "capped at 400 W, 700", gpu_3(power_limit=400.0)),
    ("NVLink", "FAIL", "GPU 3: NVLink 4, 5 down", gpu_3(nvlinks_up=16, nvlinks_down=[4, 5])),
    ("NVLink", "SKIP", "no NVLink", gpu_3(nvlinks_up=None)),
    ("persistence", "WARN", "is off", gpu_3(persistence=False)),
    ("arithmetic", "FAIL", "GPU 3: float32: 1 of 9", product_3("float32: 1 of 9 elements are wrong")),
    ("arithmetic", "FAIL", "torch sees 0 of 8 GPUs", part("products", [])),
    ("Xid", "FAIL", "Xid 79 of 0000:3b:00", part("xids", [XidFacts(code=79, device="0000:3b:00", hours_ago=2)])),
    ("Xid", "WARN", "Xid 63", part("xids", [XidFacts(code=63, device="0000:3b:00", hours_ago=2)])),
    ("Xid", "SKIP", "not read", part("xids", None)),
    ("versions", "FAIL", "driver 570.1, the other nodes have 580.65.06", part("gpus", driver="570.1")),
    ("versions", "FAIL", "NCCL 2.27.3, the other nodes have 2.28.9", part("versions", nccl="2.27.3")),
    ("packages", "FAIL", "vllm 0.31.0, pinned to 0.32.0", package("0.31.0")),
    ("packages", "FAIL", "vllm missing, pinned to 0.32.0", package(None)),
    ("InfiniBand", "FAIL", "mlx5_5/1 DOWN", port_5(state="DOWN")),
    ("InfiniBand", "FAIL", "mlx5_5/1 at 100 Gb/s, others 400", port_5(rate=100.0)),
    ("InfiniBand", "FAIL", "mlx5_0/1 absent", part("infiniband", [])),
    ("clock", "FAIL", "+4.999 s", part("clock", ClockFacts(offset=5.0, uncertain=0.002))),
    ("disk", "FAIL", "0.50 GiB free, 10 wanted", part("disk", free=GIB // 2)),
    ("disk", "FAIL", "Permission denied", part("disk", error="Permission denied: /shared/run")),
    ("disk", "WARN", "writes 20 MB/s", part("disk", write_speed=2e7)),
    ("shared memory", "FAIL", "0.06 GiB free", part("shared_memory", 64 * 2**20)),
    ("host memory", "FAIL", "400 GiB available, saving a checkpoint takes 600", part("host_memory", 400 * GIB)),
    ("ulimits", "FAIL", "nofile 1024", part("limits", nofile=1024)),
    ("ulimits", "FAIL", "memlock 65536", part("limits", memlock=65536)),
    ("ulimits", "WARN", "nproc 2048", part("limits", nproc=2048)),
    ("ports", "FAIL", "in use: 29500", part("busy_ports", [29500])),
    ("model", "FAIL", "model-2.safetensors is missing", part("model", faults=["model-2.safetensors is missing"])),
    ("model", "FAIL", "not the same files", part("model", digest="cccc")),
    ("data", "FAIL", "does not exist", part("data", [FolderFacts(path="/data", faults=["it does not exist"])])),
]


@pytest.mark.parametrize(("check", "status", "said", "spoil"), FAULTS, ids=[f"{f[0]}: {f[2]}" for f in FAULTS])
def test_one_bad_node_is_named(check: str, status: str, said: str, spoil: Callable[[NodeFacts], None]) -> None:
    nodes = [good_node(number) for number in range(4)]
    spoil(nodes[2])
    (found,) = not_passed(nodes)
    assert (found.node, found.check, found.status) == ("gpu-2", check, status)
    assert said in found.detail
    assert found.fix or status == "SKIP"


def test_of_two_nodes_that_differ_neither_is_right() -> None:
    nodes = [good_node(0), good_node(1)]
    part("gpus", driver="570.1")(nodes[1])
    found = not_passed(nodes)
    assert [f.node for f in found] == ["gpu-0", "gpu-1"]
    assert all("the nodes do not agree" in f.detail for f in found)


def test_a_clock_is_compared_with_the_nodes_not_with_the_first() -> None:
    nodes = [good_node(number) for number in range(4)]
    for node in nodes[1:]:
        node.clock = ClockFacts(offset=-30.0, uncertain=0.01)
    (found,) = not_passed(nodes)
    assert (found.node, found.check, found.status) == ("gpu-0", "clock", "FAIL")


def test_a_driver_too_old_for_torch_is_named_even_alone() -> None:
    node = good_node(0)
    part("gpus", cuda_driver="12.8")(node)
    failed = [f for f in not_passed([node]) if f.status == "FAIL"]
    assert [f.check for f in failed] == ["versions"]
    assert "torch is built for CUDA 13.0, the driver knows 12.8" in failed[0].detail


def test_old_and_application_xids_are_no_fault() -> None:
    node = good_node(0)
    node.xids = [XidFacts(code=79, device="x", hours_ago=30), XidFacts(code=31, device="x", hours_ago=1)]
    assert [f for f in not_passed([node]) if f.check == "Xid"] == []


def test_without_gpus_no_gpu_check_passes() -> None:
    nodes = [good_node(0), good_node(1)]
    for node in nodes:
        node.gpus, node.xids, node.products = GpuList(absent="NVML does not start"), None, []
    findings = judge(nodes, WANTED, GPU_CHECKS)
    assert {f.status for f in findings} == {"SKIP"}
    assert {f.detail for f in findings} == {"NVML does not start"}
    asked = judge(nodes, Requirements(use_gpus=True), GPU_CHECKS)
    assert {f.check for f in asked if f.status == "FAIL"} == {"GPUs"}
    nodes[0].gpus, nodes[0].products = good_node(0).gpus, good_node(0).products
    assert [f.node for f in judge(nodes, WANTED, GPU_CHECKS) if f.status == "FAIL"] == ["gpu-1"]


def failed(nodes: list[NodeFacts], wanted: Requirements = WANTED) -> list[tuple[str, str]]:
    return [(f.node, f.check) for f in judge(nodes, wanted, CHECKS) if f.status == "FAIL"]


@pytest.mark.parametrize("wanted", [WANTED, replace(WANTED, gpus=8)])
def test_one_lost_gpu_of_two_nodes_is_named_and_nobody_else(wanted: Requirements) -> None:
    nodes = [good_node(0), good_node(1)]
    assert nodes[1].gpus
    nodes[1].gpus.gpus[3] = GpuFacts(index=3, lost="GPU is lost")
    assert failed(nodes, wanted) == [("gpu-1", "GPUs")]
    (said,) = [f.detail for f in judge(nodes, wanted, CHECKS) if f.status == "FAIL"]
    assert "GPU 3 does not answer (GPU is lost)" in said
    of_others = [f for f in judge(nodes, wanted, GPU_CHECKS) if f.node == "gpu-1" and f.check == "GPU memory"]
    assert [(f.status, f.detail) for f in of_others] == [("SKIP", "GPU 3: does not answer")]
    assert {f.status for f in judge(nodes, wanted, CHECKS) if f.node == "gpu-0"} == {"PASS"}


def test_of_two_nodes_the_one_with_fewer_gpus_is_named() -> None:
    nodes = [good_node(0), good_node(1)]
    assert nodes[0].gpus
    nodes[0].gpus.gpus.pop()
    assert failed(nodes) == [("gpu-0", "GPUs")]
    (said,) = [f.detail for f in judge(nodes, WANTED, CHECKS) if f.status == "FAIL"]
    assert said == "7 x NVIDIA H100 80GB HBM3, another node has 8"


def test_seven_gpus_everywhere_are_shown_and_doubted_unless_they_are_wanted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes = [good_node(0), good_node(1)]
    for node in nodes:
        assert node.gpus
        node.gpus.gpus.pop()
    found = not_passed(nodes)
    assert [(f.node, f.check, f.status) for f in found] == [("gpu-0", "GPUs", "WARN"), ("gpu-1", "GPUs", "WARN")]
    assert all("7 x NVIDIA H100" in f.detail and "--gpus" in f.fix for f in found)
    assert not_passed(nodes, replace(WANTED, gpus=7)) == []
    show(judge(nodes, replace(WANTED, gpus=7), CHECKS))
    assert "7 x NVIDIA H100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "missing"),
    [
        ("InfiniBand", part("infiniband", None)),
        ("versions", part("versions", None)),
        ("model", part("model", None)),
        ("clock", part("clock", None)),
        ("host memory", part("host_memory", None)),
    ],
)
def test_a_fact_that_one_of_two_nodes_could_not_tell_is_that_nodes_alone(
    check: str, missing: Callable[[NodeFacts], None]
) -> None:
    nodes = [good_node(0), good_node(1)]
    missing(nodes[1])
    nodes[1].unanswered = {check.lower().replace(" ", "_"): "no answer within 20 s"}
    assert {node for node, _ in failed(nodes)} == {"gpu-1"}
    assert check in {found for _, found in failed(nodes)}


def test_a_driver_that_one_node_could_not_tell_is_compared_with_nothing() -> None:
    nodes = [good_node(0), good_node(1)]
    part("gpus", driver=None, cuda_driver=None)(nodes[1])
    assert failed(nodes) == []


def links(name: str, up: int, down: int) -> Callable[[NodeFacts], None]:
    """The same on all of a node's GPUs."""

    def change(node: NodeFacts) -> None:
        assert node.gpus
        update = {"name": name, "nvlinks_up": up, "nvlinks_down": list(range(up, up + down))}
        node.gpus.gpus = [gpu.model_copy(update=update) for gpu in node.gpus.gpus]

    return change


@pytest.mark.parametrize(
    ("everywhere", "here", "status"),
    [
        (links("NVIDIA H100 PCIe", 0, 18), None, "SKIP"),  # cards without bridges
        (links("NVIDIA H100 NVL", 12, 6), None, "PASS"),  # bridged in pairs
        (links("NVIDIA H100 NVL", 12, 6), links("NVIDIA H100 NVL", 8, 10), "FAIL"),
        (links("NVIDIA H100 80GB HBM3", 18, 0), links("NVIDIA H100 80GB HBM3", 0, 18), "FAIL"),
        (links("NVIDIA H100 80GB HBM3", 16, 2), None, "FAIL"),
        (links("NVIDIA A40", 0, 4), None, "WARN"),
    ],
)
def test_links_that_are_down_are_told_from_cards_without_bridges(
    everywhere: Callable[[NodeFacts], None], here: Callable[[NodeFacts], None] | None, status: str
) -> None:
    nodes = [good_node(0), good_node(1)]
    for node in nodes:
        everywhere(node)
    if here:
        here(nodes[1])
    found = {f.node: f.status for f in judge(nodes, WANTED, GPU_CHECKS) if f.check == "NVLink"}
    assert found["gpu-1"] == status
    assert found["gpu-0"] == ("PASS" if here else status)


def test_main_memory_for_checkpoints_is_wanted_of_trainer_nodes_alone() -> None:
    nodes = [good_node(0), good_node(1)]
    for node in nodes:
        node.host_memory = 400 * GIB
    assert failed(nodes, replace(WANTED, trainer_nodes=("gpu-1",))) == [("gpu-1", "host memory")]


def test_a_gpu_machine_without_the_package_fails() -> None:
    node = good_node(0)
    node.gpus = GpuList(absent="the package nvidia-ml-py is not installed", device_files=True)
    found = [f for f in judge([node], WANTED, GPU_CHECKS) if f.status == "FAIL"]
    assert [(f.check, f.detail) for f in found] == [("GPUs", "the package nvidia-ml-py is not installed")]


def test_a_part_that_does_not_answer_fails_its_checks_and_one_not_looked_at_says_why() -> None:
    node = good_node(0)
    node.disk, node.unanswered = None, {"disk": "no answer within 20 s"}
    node.model = node.data = node.busy_ports = None
    found = {f.check: (f.status, f.detail) for f in not_passed([node])}
    assert found["disk"] == ("FAIL", "no answer within 20 s")
    assert found["model"] == ("SKIP", "not checked: neither a recipe nor --model was given")
    assert found["data"] == ("SKIP", "not checked: neither a recipe nor --data was given")
    assert found["ports"] == ("SKIP", "not checked: no --ports were given")


def test_facts_survive_the_way_to_the_first_node() -> None:
    node = good_node(3)
    assert NodeFacts.from_json(node.model_dump_json()) == node

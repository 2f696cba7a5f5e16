"""Facts read from real files, sockets and folders."""

import hashlib
import json
import socket
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_empg.cluster.preflight import host
from megatron_empg.cluster.preflight.collect import PreflightOptions, ask_all, collect_node
from megatron_empg.cluster.preflight.run import PreflightError, parse_ports, read_pins


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    names = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    for number, name in enumerate(names):
        save_file({f"w{number}": torch.zeros(1000)}, folder / name)
    weight_map = {f"w{number}": name for number, name in enumerate(names)}
    (folder / host.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_whole_model_has_no_fault_and_a_digest_of_its_own(model: Path) -> None:
    facts = host.read_model(model)
    assert facts.faults == []
    assert facts.size > 8000
    last = model / "model-00002-of-00002.safetensors"
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    assert host.read_model(model).digest != facts.digest


def test_a_short_a_missing_and_a_garbled_file_are_named(model: Path) -> None:
    first, second = sorted(model.glob("*.safetensors"))
    size = first.stat().st_size
    first.write_bytes(first.read_bytes()[:-100])
    second.unlink()
    faults = host.read_model(model).faults
    assert faults == [
        f"{first.name} has {size - 100} bytes, its header promises {size}",
        f"{second.name} is missing",
    ]
    first.write_bytes(b"\xff" * 100)
    assert "its header promises no tensors" in host.read_model(model).faults[0]
    (model / "config.json").unlink()
    assert "config.json is missing" in host.read_model(model, weights=False).faults
    assert host.read_model(model / "nowhere").faults == ["it does not exist"]


def test_checksums(model: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "sums"
    files = sorted(model.glob("*.safetensors"))
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in files]
    manifest.write_text("\n".join(lines) + "\n")
    assert host.checksum_faults(manifest, model) == []
    content = bytearray(files[1].read_bytes())
    content[200] ^= 1
    files[1].write_bytes(content)
    files[0].unlink()
    assert host.checksum_faults(manifest, model) == [
        f"{files[0].name} is missing",
        f"{files[1].name} differs from sums",
    ]
    manifest.write_text("nonsense\n")
    assert "is not '<sha256>  <file>'" in host.checksum_faults(manifest, model)[0]


def test_data_must_be_there_and_not_empty(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert host.read_data(empty).faults == ["it is empty"]
    (empty / "a").write_text("x")
    assert host.read_data(empty).faults == []
    assert host.read_data(empty / "a").size == 1


def test_the_run_folder_is_written_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_WRITTEN", 2**22)
    facts = host.read_disk(tmp_path / "run" / "deep")
    assert facts.error is None
    assert facts.free
    assert facts.write_speed
    assert list((tmp_path / "run" / "deep").iterdir()) == []
    file = tmp_path / "file"
    file.write_text("")
    assert "Not a directory" in str(host.read_disk(file / "run").error)


def test_a_port_that_is_listened_on_is_busy() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert host.read_busy_ports([port]) == [port]
    assert host.read_busy_ports([port]) == []


def test_infiniband_from_a_sys_tree(tmp_path: Path) -> None:
    for card, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / card / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(state + "\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    ports = [(port.name, port.state, port.rate) for port in host.read_infiniband(tmp_path)]
    assert ports == [("mlx5_0/1", "ACTIVE", 400.0), ("mlx5_1/1", "DOWN", 400.0)]
    assert host.read_infiniband(tmp_path / "none") == []


def test_xids_of_the_kernels_log() -> None:
    log = (
        "[    1.000000] Linux version 6.8\n"
        "[ 3600.5] NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
        "[ 7200.0] NVRM: Xid (PCI:0000:86:00): 31, pid=4242, name=python, Ch 00000008\n"
    )
    found = [(xid.code, xid.device, round(xid.hours_ago, 2)) for xid in host.parse_xids(log, 10_800.0)]
    assert found == [(79, "0000:3b:00", 2.0), (31, "0000:86:00", 1.0)]


def test_main_memory_is_the_machines_or_the_control_groups(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/slurm/job_7/step_0\n")
    assert host.read_host_memory(tmp_path) == 8000 * 1024
    job = tmp_path / "sys/fs/cgroup/slurm/job_7"
    (job / "step_0").mkdir(parents=True)
    for folder, most in ((job / "step_0", "max"), (job, str(5000 * 1024))):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(str(2000 * 1024))
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {500 * 1024}\n")
    assert host.read_host_memory(tmp_path) == 3500 * 1024, "caches can be given up"
    assert 0 < host.read_host_memory() < 2**50


def test_a_hanging_part_costs_its_limit_and_nothing_else() -> None:
    def refuse() -> None:
        raise OSError("no permission")

    start = time.monotonic()
    parts = {"hangs": lambda: time.sleep(5), "refuses": refuse, "answers": lambda: 3}
    answers = ask_all(parts, dict.fromkeys(parts, 0.3))
    assert time.monotonic() - start < 2
    assert answers == {"hangs": "no answer within 0 s", "refuses": "no permission", "answers": (3,)}


def test_this_machine_answers_every_question(tmp_path: Path, model: Path) -> None:
    asked = PreflightOptions(
        run_folder=tmp_path, model=model, data=(model,), packages=("numpy", "no-such"), ports=(1,)
    )
    node = collect_node("here", asked)
    assert set(node.unanswered) <= {"xids"}, node.unanswered  # the kernel's log may be closed to this user
    assert node.versions
    assert node.versions.torch == torch.__version__
    assert node.versions.packages["no-such"] is None
    assert node.disk
    assert node.shared_memory
    assert node.limits
    assert node.model
    assert node.gpus


def test_pins_and_ports(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# a comment\ntorch==2.13.0\nmegatron-core==0.19.2  # why\nnumpy>=2\n")
    assert read_pins(file) == {"torch": "2.13.0", "megatron-core": "0.19.2"}
    with pytest.raises(PreflightError, match="cannot read the requirements"):
        read_pins(tmp_path / "none")
    file.write_bytes(b"torch==2.13.0\n\xff")
    with pytest.raises(PreflightError, match=r"requirements\.txt: not UTF-8"):
        read_pins(file)
    assert parse_ports("29500-29502,8000") == (29500, 29501, 29502, 8000)
    for wrong in ("5-3", "a", "0", "1-70000", "-5", "5-", "²", "٣", "9" * 40):
        with pytest.raises(PreflightError, match=f"'{wrong}'"):
            parse_ports(wrong)

"""Facts of a node that no GPU library is needed for. Each function reads one thing and raises OSError at worst."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

from megatron_empg.cluster.preflight.facts import (
    DiskFacts,
    FolderFacts,
    LimitFacts,
    PortFacts,
    VersionFacts,
    XidFacts,
)

INDEX = "model.safetensors.index.json"
_WRITTEN = 64 * 2**20
_WRITE_SECONDS = 5.0
_ENDS = 2**16


def read_disk(folder: Path) -> DiskFacts:
    """Make the folder, write 64 MiB (or for 5 s) to it, flushed, and take them away again."""
    file = folder / f".preflight-{uuid.uuid4().hex}"
    block = os.urandom(2**20) * 4
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        start, written = time.perf_counter(), 0
        with file.open("wb", buffering=0) as handle:
            while written < min(_WRITTEN, free // 2) and time.perf_counter() - start < _WRITE_SECONDS:
                written += handle.write(block)
                os.fsync(handle.fileno())
        speed = written / (time.perf_counter() - start)
        return DiskFacts(folder=str(folder), free=free, write_speed=speed)
    except OSError as error:
        return DiskFacts(folder=str(folder), error=f"{error.strerror}: {error.filename or folder}")
    finally:
        with contextlib.suppress(OSError):
            file.unlink()


def read_shared_memory() -> int:
    """Free bytes of /dev/shm."""
    return shutil.disk_usage("/dev/shm").free


def read_host_memory(root: Path = Path("/")) -> int:
    """Bytes that this job can still take: of the machine, or of its control group where that has less."""
    found = re.search(
        r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    if found is None:
        raise OSError("/proc/meminfo has no MemAvailable")
    left = [int(found[1]) * 1024]
    with contextlib.suppress(OSError):
        own = re.search(r"^0::/(\S*)", (root / "proc/self/cgroup").read_text(encoding="utf-8"), re.MULTILINE)
        groups = root / "sys/fs/cgroup"
        if own:
            folder = groups / own[1]
        else:
            folder = groups
        while folder.is_relative_to(groups):
            left += _left_in_group(folder)
            folder = folder.parent
    return min(left)


def _left_in_group(folder: Path) -> list[int]:
    """What a control group may still take; nothing for one without a limit. Caches that can be given up count."""
    try:
        most = (folder / "memory.max").read_text(encoding="utf-8").strip()
        if most == "max":
            return []
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        cached = re.search(
            r"^inactive_file (\d+)", (folder / "memory.stat").read_text(encoding="utf-8"), re.MULTILINE
        )
        return [int(most) - used + (int(cached[1]) if cached else 0)]
    except OSError:  # no such group from here, as in a container
        return []


def read_limits() -> LimitFacts:
    """The soft limits in force."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "memlock": resource.RLIMIT_MEMLOCK, "nproc": resource.RLIMIT_NPROC}
    return LimitFacts(**{name: resource.getrlimit(kind)[0] for name, kind in kinds.items()})


def read_busy_ports(ports: Iterable[int]) -> list[int]:
    """Those that something listens on, on any interface."""
    busy = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                busy.append(port)
    return busy


def read_infiniband(root: Path = Path("/sys/class/infiniband")) -> list[PortFacts]:
    """Every port of every device, by name."""
    ports = []
    for folder in sorted(root.glob("*/ports/*")):
        found = re.match(r"[\d.]+", (folder / "rate").read_text(encoding="utf-8"))
        rate = None
        if found:
            rate = float(found.group())
        _, _, state = (folder / "state").read_text(encoding="utf-8").partition(":")
        ports.append(PortFacts(name=f"{folder.parts[-3]}/{folder.name}", state=state.strip(), rate=rate))
    return ports


def read_versions(packages: Iterable[str]) -> VersionFacts:
    """Python, torch, its CUDA and NCCL, and the named packages."""
    import torch

    nccl = None
    if torch.version.cuda:
        numbers = torch.cuda.nccl.version()
        if numbers:
            nccl = ".".join(map(str, numbers))
    return VersionFacts(
        torch=torch.__version__,
        cuda=torch.version.cuda,
        nccl=nccl,
        python=platform.python_version(),
        packages={name: _version(name) for name in packages},
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_xids() -> list[XidFacts]:
    """NVIDIA driver errors since boot. Raises OSError where the kernel's log is closed to this user."""
    try:
        answer = subprocess.run(
            ["dmesg"], capture_output=True, text=True, errors="replace", timeout=8, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise OSError(f"dmesg: {error}") from None
    if answer.returncode:
        raise OSError(answer.stderr.strip() or "dmesg failed")
    return parse_xids(answer.stdout, time.clock_gettime(time.CLOCK_BOOTTIME))


def parse_xids(log: str, uptime: float) -> list[XidFacts]:
    """Read Xid errors from lines like ``[ 8.5] NVRM: Xid (PCI:0000:3b:00): 79, pid=...``."""
    found = re.findall(r"^\[\s*([\d.]+)\].*NVRM: Xid \((?:PCI:)?([^)]+)\): (\d+)", log, re.MULTILINE)
    return [
        XidFacts(code=int(code), device=device, hours_ago=(uptime - float(at)) / 3600)
        for at, device, code in found
    ]


def read_model(folder: Path, *, weights: bool = True) -> FolderFacts:
    """A Hugging Face folder: configuration, tokenizer, and every safetensors file of the index, whole."""
    facts = _read_folder(folder)
    if not facts.faults:
        for needed in ("config.json", "tokenizer_config.json"):
            if not (folder / needed).exists():
                facts.faults.append(f"{needed} is missing")
        if weights:
            facts.faults += _weight_faults(folder)
    return facts


def _weight_faults(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            return [f"{INDEX} cannot be read ({error!r})"]
    else:
        names = ["model.safetensors"]
    faults = []
    for name in names:
        file = folder / Path(name).name
        if not file.exists():
            faults.append(f"{name} is missing")
        elif (wanted := _safetensors_size(file)) != file.stat().st_size:
            faults.append(f"{name} has {file.stat().st_size} bytes, its header promises {wanted or 'no tensors'}")
    return faults


def _safetensors_size(file: Path) -> int | None:
    """Bytes by the file's own header: 8 for the header's length, the header, the tensors' last offset."""
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > 100_000_000:
            return None
        try:
            header = json.loads(handle.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return 8 + length + max(ends, default=0)


def read_data(path: Path) -> FolderFacts:
    """A file or folder of data: there, and not empty."""
    facts = _read_folder(path)
    if not facts.faults and not facts.size:
        facts.faults.append("it is empty")
    return facts


def _read_folder(path: Path) -> FolderFacts:
    if not path.exists():
        return FolderFacts(path=str(path), faults=["it does not exist"])
    if path.is_file():
        files = [path]
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file())
    digest, size = hashlib.sha256(), 0
    for file in files:
        length = file.stat().st_size
        size += length
        digest.update(f"{file.relative_to(path)} {length}\n".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(_ENDS))
            handle.seek(max(0, length - _ENDS))
            digest.update(handle.read(_ENDS))
    return FolderFacts(path=str(path), size=size, digest=digest.hexdigest())


def checksum_faults(manifest: Path, folder: Path) -> list[str]:
    """Files that do not have the SHA-256 that a manifest in sha256sum's format gives them."""
    faults = []
    for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
        wanted, _, name = line.partition(" ")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", wanted) or not name.strip(" *"):
            faults.append(f"{manifest}:{number} is not '<sha256>  <file>'")
            continue
        file = folder / name.strip(" *")
        if not file.exists():
            faults.append(f"{file.name} is missing")
            continue
        with file.open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != wanted.lower():
                faults.append(f"{file.name} differs from {manifest.name}")
    return faults

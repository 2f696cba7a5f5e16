"""What one node says of itself. Plain values, JSON both ways; None is "could not be read"."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Facts(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GpuFacts(Facts):
    """One GPU as NVML describes it. Memory is in bytes, power in watts."""

    index: int
    name: str = "unknown"
    uuid: str = ""
    lost: str | None = None
    """Why it does not answer; what it has not told is None."""
    memory_total: int | None = None
    memory_free: int | None = None
    ecc_on: bool | None = None
    ecc_uncorrected: int | None = None
    """Since the driver was loaded."""
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    throttle: list[str] | None = None
    power_limit: float | None = None
    power_default: float | None = None
    persistence: bool | None = None
    nvlinks_up: int | None = None
    nvlinks_down: list[int] | None = None


class GpuList(Facts):
    driver: str | None = None
    cuda_driver: str | None = None
    gpus: list[GpuFacts] = []
    absent: str | None = None
    """Why there are none to look at: no package, no driver, or --no-gpu."""
    device_files: bool = False
    """/dev/nvidiactl is there, so there should be GPUs."""
    on_bus: int | None = None
    """GPUs that the machine's PCI bus lists, whether this job may use them or not."""


class ProductFacts(Facts):
    """Matrix products of one GPU against their known results. ``index`` is torch's."""

    index: int
    uuid: str = ""
    faults: list[str] = []


class XidFacts(Facts):
    """A driver error in the kernel's log."""

    code: int
    device: str
    hours_ago: float


class VersionFacts(Facts):
    torch: str | None
    cuda: str | None
    nccl: str | None
    python: str
    packages: dict[str, str | None]
    """Installed version by name; None is not installed."""


class PortFacts(Facts):
    """An InfiniBand (or RoCE) port of /sys/class/infiniband."""

    name: str
    state: str
    rate: float | None
    """Gb/s."""


class DiskFacts(Facts):
    """The disk of the run folder. ``error`` says why it could not be written."""

    folder: str
    free: int | None = None
    write_speed: float | None = None
    """Bytes per second, flushed to the disk."""
    error: str | None = None


class LimitFacts(Facts):
    """ulimits; -1 is unlimited."""

    nofile: int
    memlock: int
    nproc: int


class FolderFacts(Facts):
    """A model's or data's files as this node sees them."""

    path: str
    faults: list[str] = []
    size: int = 0
    digest: str | None = None
    """Over the names, sizes and first and last bytes of all files: equal on nodes that see the same."""


class ClockFacts(Facts):
    """This node's clock minus rank 0's, in seconds, known to within ``uncertain``."""

    offset: float
    uncertain: float


class NodeFacts(Facts):
    """Everything of one node. A part is None when it was not looked at or did not answer (see ``unanswered``)."""

    name: str
    gpus: GpuList | None = None
    products: list[ProductFacts] | None = None
    """Of the GPUs that torch sees."""
    xids: list[XidFacts] | None = None
    versions: VersionFacts | None = None
    infiniband: list[PortFacts] | None = None
    disk: DiskFacts | None = None
    shared_memory: int | None = None
    """Free bytes of /dev/shm."""
    host_memory: int | None = None
    """Bytes of main memory that processes of this job can still take."""
    limits: LimitFacts | None = None
    busy_ports: list[int] | None = None
    model: FolderFacts | None = None
    data: list[FolderFacts] | None = None
    clock: ClockFacts | None = None
    unanswered: dict[str, str] = {}

    @classmethod
    def from_json(cls, text: str | bytes) -> NodeFacts:
        return cls.model_validate_json(text)

"""A real Slurm on this machine: munged, slurmctld and a slurmd for each simulated node of 8 fake GPUs.

All daemons are on loopback and need root, but neither systemd nor cgroups. Nodes share the machine's address and
differ by name, which does not resolve, and by port.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIGURATION = """\
ClusterName=simulated
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.log
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=10
InactiveLimit=0
MinJobAge=600
KillWait=5
WaitTime=0
OverTimeLimit=0
JobRequeue=1
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
"""


def missing_programs() -> list[str]:
    """Of those a simulated cluster needs; root's rights count as one."""
    found = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return found + ([] if os.geteuid() == 0 else ["root"])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


@dataclass
class Job:
    """What the controller says of a job."""

    number: int
    state: str
    exit_code: int
    restarts: int
    nodes: str


class Cluster:
    """Start with `with Cluster(folder, nodes=3) as cluster`; its end leaves no process behind."""

    def __init__(self, root: Path, *, nodes: int, cores: int = 8, memory_mb: int = 4000) -> None:
        self.root, self.nodes, self.cores, self.memory_mb = root, nodes, cores, memory_mb
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "EMPG"))},
            "SLURM_CONF": str(root / "etc/slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            root = self.root
            self.run(
                "munged", "--force", f"--key-file={root}/munge/munge.key", f"--socket={root}/run/munge.socket",
                f"--pid-file={root}/run/munged.pid", f"--log-file={root}/log/munged.log",
                f"--seed-file={root}/munge/seed",
            )  # fmt: skip
            self.run("slurmctld", "-c")
            for number in range(1, self.nodes + 1):
                self.run("slurmd", "-N", f"node{number}")
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.SubprocessError):
            self.run("scancel", "--state=PENDING,RUNNING", "--user=root", check=False, timeout=10)
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and self._queue():
            time.sleep(0.2)
        daemons = [int(path.read_text()) for path in self.root.glob("run/*.pid")]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in daemons:
                if _name(pid) in ("munged", "slurmctld", "slurmd"):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and any(_name(pid) for pid in daemons):
                time.sleep(0.1)
        self.kill_tasks()

    def run(self, *command: str, check: bool = True, timeout: float = 60, **environment: str) -> str:
        """Standard output and error of a command under this cluster's configuration."""
        done = subprocess.run(
            command, env={**self.environment, **environment}, text=True, timeout=timeout, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def job(self, number: int) -> Job:
        for _ in range(5):  # a client may lose its connection when the machine is busy
            text = self.run("scontrol", "show", "job", str(number), "--oneliner", timeout=30, check=False)
            if text.startswith("JobId="):
                break
            time.sleep(1)
        fields = dict(word.split("=", 1) for word in text.split() if "=" in word)
        code = int(fields["ExitCode"].split(":")[0])
        return Job(number, fields["JobState"], code, int(fields["Restarts"]), fields.get("NodeList", ""))

    def wait(self, number: int, states: tuple[str, ...] = ("COMPLETED", "FAILED"), *, timeout: float) -> Job:
        """Until the job is in one of the states. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while (job := self.job(number)).state not in states:
            if job.state in ("CANCELLED", "TIMEOUT", "NODE_FAIL") or time.monotonic() > deadline:
                raise TimeoutError(f"{job} was to be {' or '.join(states)} within {timeout:.0f} s")
            time.sleep(0.5)
        return job

    def kill_tasks(self, node: str | None = None) -> None:
        """Kill -9 what runs under this cluster's jobs (on one node)."""
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                ours = f"SLURM_CONF={self.environment['SLURM_CONF']}".encode() in variables
                in_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
                if ours and in_job and (node is None or f"SLURMD_NODENAME={node}".encode() in variables):
                    os.kill(int(folder.name), signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """As if the machine had lost power: its slurmd, what that left to watch over steps, and every task."""
        os.kill(int((self.root / f"run/slurmd.{node}.pid").read_text()), signal.SIGKILL)
        log = str(self.root / f"log/slurmd.{node}.log")
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if _name(int(folder.name)) == "slurmstepd" and log in map(os.readlink, (folder / "fd").iterdir()):
                    os.kill(int(folder.name), signal.SIGKILL)
        self.kill_tasks(node)

    def start_dead_nodes(self) -> None:
        """Bring back what `kill_node` took away, and wait until no job holds a node."""
        for number in range(1, self.nodes + 1):
            if _name(int((self.root / f"run/slurmd.node{number}.pid").read_text())) != "slurmd":
                self.run("slurmd", "-N", f"node{number}")
        self._wait_until_idle()

    def _queue(self) -> str:
        with suppress(subprocess.SubprocessError):
            return self.run("squeue", "--noheader", check=False, timeout=10).strip()
        return ""

    def _wait_until_idle(self) -> None:
        for _ in range(300):
            with suppress(subprocess.SubprocessError):
                found = self.run("sinfo", "--noheader", "--format=%D %t", check=False, timeout=10).split()
                if found == [str(self.nodes), "idle"]:
                    return
            time.sleep(0.1)
        logs = "\n".join(path.read_text()[-2000:] for path in self.root.glob("log/*.log"))
        raise AssertionError(f"the simulated cluster did not come up:\n{logs}")

    def _configure(self) -> None:
        host, root, nodes = socket.gethostname().split(".")[0], self.root, range(1, self.nodes + 1)
        for name in ("etc", "run", "log", "state", "munge", "dev", *(f"spool/node{n}" for n in nodes)):
            (root / name).mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)
        (root / "munge").chmod(0o700)
        key = root / "munge/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        for number in range(8):  # Slurm wants character devices; these are like /dev/null
            os.mknod(root / f"dev/nvidia{number}", 0o020666, os.makedev(1, 3))
        ports = free_ports(1 + self.nodes)
        lines = [CONFIGURATION.format(host=host, port=ports[0], root=root)]
        lines += [
            f"NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs={self.cores} Boards=1 "
            f"SocketsPerBoard=1 CoresPerSocket={self.cores} ThreadsPerCore=1 RealMemory={self.memory_mb} "
            "Gres=gpu:8 State=UNKNOWN\n"
            for n in nodes
        ]
        lines += [f"PartitionName=gpu Nodes=node[1-{self.nodes}] Default=YES MaxTime=INFINITE State=UP\n"]
        (root / "etc/slurm.conf").write_text("".join(lines))
        (root / "etc/gres.conf").write_text(
            f"AutoDetect=off\nNodeName=node[1-{self.nodes}] Name=gpu File={root}/dev/nvidia[0-7]\n"
        )


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def read_jsonl(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

"""What a run folder's parts are called, said once for everybody who writes, reads or names them.

The standard library of Python 3.9 is all it needs, since the launcher reads it on a cluster's batch host.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

WHOLE_NUMBER = re.compile("[0-9]{1,15}")
"""Digits of a step or a limit; `int` refuses thousands of them."""


class RunPaths:
    """Where in the run folder `root` everything lies. Making the object touches nothing on disk.

    Example: RunPaths("runs/a").heartbeat(0) is runs/a/heartbeats/rank_0.json
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.recipe = self.root / "recipe.yaml"
        """The resolved recipe."""
        self.versions = self.root / "versions.json"
        """What ran, and what changed, at each start."""
        self.identity = self.root / "identity.json"
        """Kind of run, model, data, defaults."""
        self.policy = self.root / "policy"
        """The exported policy, a Hugging Face folder."""
        self.exported = self.root / "exported.json"
        """The step that `policy` is of."""
        self.metrics = self.root / "metrics.jsonl"
        """One line per step."""
        self.steps = self.root / "steps.jsonl"
        """Entropies and advantages of the turns."""
        self.evaluations = self.root / "evaluations.jsonl"
        """Which questions each evaluation found answered, one line per split and decoding."""
        self.timeline = self.root / "timeline.jsonl"
        """When the turns of each step's slowest episodes took place."""
        self.checkpoints = self.root / "checkpoints"
        """Model, optimizer, RNG, data order."""
        self.episodes = self.root / "episodes"
        """Sampled episodes, annotated."""
        self.batches = self.root / "batches"
        """What each step was trained on, with `rollout.max_lag`."""
        self.tensorboard = self.root / "tensorboard"
        self.logs = self.root / "logs"
        self.report = self.root / "report.html"
        self.stop = self.root / "STOP"
        """Made by an interrupt, or by hand: training ends after the running step, with a checkpoint."""
        self.lock_file = self.root / ".lock"
        """Held by the process that trains here."""
        self.starts = self.root / "starts"
        """A line "JOB CHECKPOINT" for each start."""
        self.bad_nodes = self.root / "bad_nodes"
        """A line "JOB NODE WHAT" for each node that the job goes on without."""
        self.converted_model = self.root / "model"
        """A Megatron checkpoint as a Hugging Face folder, made by the job's first step."""
        self.flight_recorder = self.root / "flight_recorder"
        """What the ranks were at when one of them hung: stacks, and the last collectives."""
        self.heartbeats = self.root / "heartbeats"
        self.playing = self.heartbeats / "playing.json"
        """How many of the episodes that are played at this moment are over; there while some are played."""
        self.dump_request = self.heartbeats / "DUMP"
        """Made by the watchdog: every rank is to write what it is at to `flight_recorder`."""

    def batch(self, step: int) -> Path:
        """What a step, counted from 1, was trained on."""
        return self.batches / f"step_{step:06d}"

    def tracker_id(self, tracker: str) -> Path:
        """What a tracker calls the run; "wandb" for one."""
        return self.root / f"{tracker}_run_id"

    def heartbeat(self, rank: int) -> Path:
        """Where a trainer rank says what it does."""
        return self.heartbeats / f"rank_{rank}.json"

    def all_heartbeats(self) -> Sequence[Path]:
        """Those that are there, of every rank."""
        return sorted(self.heartbeats.glob("rank_*.json"))

    def gpu_events(self, node: str) -> Path:
        """NVML's events of a node, one line each."""
        return self.heartbeats / f"gpu_{node}.jsonl"

    def all_gpu_events(self) -> Sequence[Path]:
        """Those that are there, of every node."""
        return sorted(self.heartbeats.glob("gpu_*.jsonl"))

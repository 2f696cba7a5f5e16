"""What the engines are told: how many vLLM servers there are, how large each is, and where they listen."""

from typing import Annotated

from pydantic import Field

from megatron_empg.common.section import Positive, Section


class EngineConfig(Section):
    """The vLLM servers of a run, which are all alike."""

    count: Positive = 1
    """vLLM servers."""
    tensor_parallel: Positive = 1
    """GPUs (or CPU processes) a server."""
    kv_cache_gib: Annotated[float, Field(ge=0.001, le=100_000)] | None = None
    """Memory of the key-value cache on each of a server's GPUs; vLLM decides when empty (on GPU)."""
    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The interface the servers listen on. Every route asks for the run's token."""
    start_timeout: Positive = 600
    """Seconds that a server may take from its start to its first healthy answer."""
    silence_timeout: Positive = 60
    """Seconds in which a server that was healthy may answer no question of health. It then counts as frozen and is
    started again, as is the rollout service. An engine whose server answers while its core does not has a minute
    beyond the longer of this and `limits.sync_timeout`, since a core answers nothing while it receives weights."""

    @property
    def world_size(self) -> int:
        """Number of GPUs (or CPU processes) of all servers."""
        return self.count * self.tensor_parallel

    @property
    def kv_cache_bytes(self) -> int | None:
        """The key-value cache's size in bytes; None where vLLM decides."""
        if self.kv_cache_gib is None:
            return None
        return int(self.kv_cache_gib * 2**30)

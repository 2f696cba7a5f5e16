"""Deep Search in worker processes, as an environment whose engine is not thread-safe runs."""

from megatron_empg.environments.deep_search.source import DeepSearch


class IsolatedSearch(DeepSearch):
    """Each worker reads the corpus for itself."""

    isolation = "process"
    worker_memory_gib = 0.5

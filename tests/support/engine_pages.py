"""Pages as vLLM's /metrics answers them, for tests of what reads them."""

from collections.abc import Mapping, Sequence


def page(counters: Mapping[str, float], histograms: Mapping[str, Sequence[float]] = {}, engines: int = 1) -> str:
    """`counters` by their names without the prefix; `histograms` as measurements, in buckets of 1, 2, 4 and more.

    Each of `engines` data-parallel parts has counted the same.
    """
    lines = ["# HELP python_gc_objects_collected_total Objects collected during gc", "python_info 1.0"]
    for part in range(engines):
        labels = f'engine="{part}",model_name="a {{model}}, with \\"signs\\""'
        lines += [f"vllm:{name}{{{labels}}} {float(value)}" for name, value in counters.items()]
        for name, values in histograms.items():
            for bound in ("1.0", "2.0", "4.0", "+Inf"):
                reached = sum(value <= float(bound) for value in values)
                lines.append(f'vllm:{name}_bucket{{{labels},le="{bound}"}} {float(reached)}')
            lines.append(f"vllm:{name}_count{{{labels}}} {float(len(values))}")
            lines.append(f"vllm:{name}_sum{{{labels}}} {float(sum(values))}")
            lines.append(f"vllm:{name}_created{{{labels}}} 1.7e+09")
    return "\n".join(lines) + "\n"

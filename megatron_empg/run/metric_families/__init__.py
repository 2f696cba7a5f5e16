"""The metrics that a run writes, a file for each family; run/metric_names.py is the registry of them all."""

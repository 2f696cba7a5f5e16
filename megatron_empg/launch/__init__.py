"""How a run's processes start, stay healthy and come back, on one machine and under Slurm.

The supervisor and all it imports need the standard library of Python 3.9 alone, since they run on a cluster's
batch host beside the containers; what reads a recipe runs inside the image, as a process of its own (`tasks`).
"""

#!/usr/bin/env bash
# Are the collectives between these nodes right, and as fast as they should be? If not: which node, GPU or link?
#
#   sbatch --nodes=4 slurm/nccl_suite.sh [--recipe recipes/NAME.yaml] [options of tools/nccl_suite.py]
#
# The table is in the job's output, JSON and heat map beside it; docs/nccl_suite.md explains them.
#SBATCH --job-name=nccl_suite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=00:40:00
#SBATCH --output=%x_%j.out

EMPG_HOME=${EMPG_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
source "$EMPG_HOME/slurm/job.sh" || { echo "no slurm/job.sh in $EMPG_HOME: submit from the repository, or set EMPG_HOME" && exit 10; }
job suite "$0" "$@"

#!/usr/bin/env bash
# Deep Search with Qwen2.5-32B-Instruct: 3 nodes train, 5 roll out, of 8 GPUs each.
#
# First, on a login node: bash slurm/prepare.sh deepsearch data/deepsearch
#
#   bash slurm/deepsearch_32b.sh --check          on a login node: is all well? Starts no job
#   sbatch slurm/deepsearch_32b.sh [key=value …]  any key of the recipe, and data=CORPUS search_url=URL
#
# Spare nodes: sbatch --nodes=9. docs/slurm.md has every variable and exit code.
#SBATCH --job-name=deepsearch_32b
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.out

export EMPG_RECIPE=${EMPG_RECIPE:-recipes/deepsearch_32b.yaml}
export EMPG_TRAINER_NODES=${EMPG_TRAINER_NODES:-3} EMPG_ROLLOUT_NODES=${EMPG_ROLLOUT_NODES:-5}

EMPG_HOME=${EMPG_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
source "$EMPG_HOME/slurm/job.sh" || { echo "no slurm/job.sh in $EMPG_HOME: submit from the repository, or set EMPG_HOME" && exit 10; }
job train "$0" "$@"

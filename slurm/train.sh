#!/usr/bin/env bash
# Any recipe on any number of nodes; on one, engines share it with the trainer by the number of GPUs.
#
#   bash slurm/train.sh --check RECIPE --nodes=4       on a login node: is all well? Starts no job
#   sbatch --nodes=4 slurm/train.sh RECIPE [key=value …]
#
# docs/slurm.md says how nodes are shared out, and has every variable and exit code.
#SBATCH --job-name=train
#SBATCH --nodes=1
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

EMPG_HOME=${EMPG_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
source "$EMPG_HOME/slurm/job.sh" || { echo "no slurm/job.sh in $EMPG_HOME: submit from the repository, or set EMPG_HOME" && exit 10; }
job train "$0" "$@"

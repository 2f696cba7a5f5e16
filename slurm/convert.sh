#!/usr/bin/env bash
# A checkpoint from Hugging Face to Megatron, or back; the same job goes on where one was interrupted.
#
#   sbatch slurm/convert.sh to-megatron SRC DST [--tensor-parallel 8 --pipeline-parallel 2]
#   sbatch slurm/convert.sh to-hf SRC DST
#SBATCH --job-name=convert
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=02:00:00
#SBATCH --output=%x_%j.out

EMPG_HOME=${EMPG_HOME:-${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}}
source "$EMPG_HOME/slurm/job.sh" || { echo "no slurm/job.sh in $EMPG_HOME: submit from the repository, or set EMPG_HOME" && exit 10; }
job convert "$0" "$@"

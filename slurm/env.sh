#!/usr/bin/env bash
# The network and CUDA settings of a task, on the node it runs on; what the user has set wins. Sourced, it sets and
# prints them; `bash slurm/env.sh COMMAND …` runs a command under them.

# The interface that holds this node's address (EMPG_ADDRESSES, made by the job), else none: NCCL then chooses.
empg_interface() {
  local pair
  for pair in ${EMPG_ADDRESSES:-}; do
    if [ "${pair%%=*}" = "${SLURMD_NODENAME:-}" ]; then
      ip -oneline address show to "${pair#*=}/32" 2>/dev/null | awk 'NR == 1 {print $2}'
    fi
  done
}

# Ports of InfiniBand that are up; with none NCCL looks for itself (RoCE needs the user's NCCL_IB_HCA).
empg_hcas() {
  local port
  for port in /sys/class/infiniband/*/ports/*; do
    if grep -qs ACTIVE "$port/state" && grep -qs InfiniBand "$port/link_layer"; then
      printf '%s,' "$(basename "$(dirname "$(dirname "$port")")"):$(basename "$port")"
    fi
  done
}

empg_set() { # empg_set NAME VALUE: set and print a variable, unless the user has, or the value is empty
  if [ -n "${!1:-}" ]; then
    echo "env: $1=${!1} (given)"
  elif [ -n "$2" ]; then
    export "$1=$2"
    echo "env: $1=$2"
  else
    echo "env: $1 not set"
  fi
}

empg_env() {
  local interface hcas
  interface=$(empg_interface)
  hcas=$(empg_hcas)
  empg_set NCCL_SOCKET_IFNAME "${interface:+=$interface}" # "=" asks for this very name
  empg_set GLOO_SOCKET_IFNAME "$interface"
  empg_set NCCL_IB_HCA "${hcas:+=${hcas%,}}"
  empg_set CUDA_DEVICE_MAX_CONNECTIONS 1 # Megatron's overlap of tensor-parallel communication counts on it
  empg_set NCCL_DEBUG WARN
  empg_set OMP_NUM_THREADS 1
  # The flight recorder: the last collectives of each rank, written to the run folder when one hangs.
  empg_set TORCH_FR_BUFFER_SIZE 2000
  empg_set TORCH_NCCL_DUMP_ON_TIMEOUT 1
  empg_set TORCH_FR_DUMP_TEMP_FILE "${EMPG_RUN_FOLDER:+$EMPG_RUN_FOLDER/flight_recorder/nccl_rank_}"
}

if [ "${BASH_SOURCE[0]}" != "$0" ]; then
  empg_env
elif [ $# -gt 0 ]; then
  # Each task its own log; srun's %N would be the machine's name, which need not be the node's.
  [ -z "${EMPG_LOG:-}" ] || exec >"$EMPG_LOG.$SLURMD_NODENAME.$SLURM_LOCALID.log" 2>&1
  empg_env
  exec "$@"
fi

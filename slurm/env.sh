#!/usr/bin/env bash
# The network, CUDA and cache settings of a task, on the node it runs on; what the user has set wins. Sourced, it
# sets and prints them; `bash slurm/env.sh COMMAND …` runs a command under them. What trainer ranks alone want is
# added by `python -m megatron_empg.launch.tasks trainer`.

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

# A folder of this node for what is compiled; in a home that nodes share, all of them would write the same files. It
# outlives the job, so that the next one compiles less. In a /tmp that others write too it must be ours and no link.
empg_caches() {
  local folder
  folder=${TMPDIR:-/tmp}/empg_caches_$(id -u)
  mkdir -m 700 "$folder" 2>/dev/null
  if [ -L "$folder" ] || [ ! -d "$folder" ] || [ ! -O "$folder" ] || [ ! -w "$folder" ]; then
    folder=$(mktemp -d "${TMPDIR:-/tmp}/empg_caches.XXXXXXXX") || return 0
  fi
  chmod 700 "$folder"
  echo "$folder"
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
  local interface hcas caches
  interface=$(empg_interface)
  hcas=$(empg_hcas)
  empg_set NCCL_SOCKET_IFNAME "${interface:+=$interface}" # "=" asks for this very name
  empg_set GLOO_SOCKET_IFNAME "$interface"
  empg_set NCCL_IB_HCA "${hcas:+=${hcas%,}}"
  empg_set NCCL_DEBUG WARN
  empg_set OMP_NUM_THREADS 1
  caches=$(empg_caches)
  empg_set TRITON_CACHE_DIR "${caches:+$caches/triton}"
  empg_set TORCHINDUCTOR_CACHE_DIR "${caches:+$caches/inductor}"
  empg_set VLLM_CACHE_ROOT "${caches:+$caches/vllm}"
  empg_set CUDA_CACHE_PATH "${caches:+$caches/cuda}"
  empg_set TORCHINDUCTOR_COMPILE_THREADS 2 # of each rank; a pool as wide as the node, eight times, is too much
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

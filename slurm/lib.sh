# shellcheck shell=bash
# What the sbatch files share: variables, checks, steps, restarts. docs/slurm.md describes it.
# Nodes, roles, addresses and ports come from Slurm; names are never resolved on more than one node.

# Exit codes: what failed.
declare -A CODES=(
  [configuration]=10 [preflight]=11 [conversion]=12 [search]=13 [engines]=14 [driver]=15 [trainer]=16
  [watchdog]=17 [node]=18 [restarts]=19
)
declare -A PIDS=() # srun's process by the name of its step
SBATCH_OPTIONS=()

say() { printf '%(%F %T)T %s\n' -1 "$*"; }

die() { # die WHAT MESSAGE
  say "error ($1): $2" >&2
  exit "${CODES[$1]}"
}

again() { # again COMMAND…: Slurm's clients lose their connection now and then
  "$@" || { sleep 2 && "$@"; } || { sleep 5 && "$@"; }
}

# --- variables ---------------------------------------------------------------------------------------------------

defaults() { # defaults PATH …: what every script needs to know; the paths are those its tasks read and write
  local name
  SCRIPT=$(realpath "$0")
  EMPG_HOME=$(cd "$EMPG_HOME" && pwd) && cd "$EMPG_HOME" || exit 10
  : "${EMPG_GPUS_PER_NODE:=$(given_gpus)}" "${EMPG_DEVICE:=cuda}" "${EMPG_INTERFACE:=}"
  : "${EMPG_CONTAINER:=}" "${EMPG_MOUNTS:=}" "${EMPG_RUN_FOLDER:=}" "${EMPG_RECIPE:=}"
  if [ -z "${EMPG_PYTHON:-}" ]; then
    EMPG_PYTHON=python3
    [ -n "$EMPG_CONTAINER" ] || [ ! -x .venv/bin/python ] || EMPG_PYTHON=$EMPG_HOME/.venv/bin/python
  fi
  export PYTHONPATH=$EMPG_HOME${PYTHONPATH:+:$PYTHONPATH} # an image has the packages, not this one
  [[ $EMPG_DEVICE =~ ^(cuda|cpu)$ ]] || die configuration "EMPG_DEVICE is '$EMPG_DEVICE'; allowed: cuda, cpu"
  choose_container "$@"
  for name in RECIPE TRAINER_NODES ROLLOUT_NODES GPUS_PER_NODE ENGINES_PER_NODE DEVICE CONTAINER PYTHON; do
    name=EMPG_$name
    [ -z "${!name:-}" ] || say "$name=${!name}"
  done
}

script_option() { # script_option NAME: of --check's options, else of the script's #SBATCH lines
  local word
  for word in "${SBATCH_OPTIONS[@]}"; do
    case $word in "--$1="*) echo "${word#*=}" && return ;; esac
  done
  sed -n "s/^#SBATCH --$1=\([^ ]*\).*/\1/p" "$SCRIPT" | tail -1
}

given_gpus() { # GPUs a node: Slurm's word in a job, else the script's
  local given=${SLURM_GPUS_PER_NODE:-$(script_option gpus-per-node)}
  echo "${given##*:}"
}

choose_container() { # choose_container PATH …: IN_SRUN, srun's options (Pyxis); IN_TASK, words before a command (Apptainer)
  local mounts=$EMPG_HOME:$EMPG_HOME${EMPG_MOUNTS:+,$EMPG_MOUNTS} path
  for path in "$@"; do # each, or the folder it is to be made in
    while [[ $path == /?* ]] && [ ! -e "$path" ]; do path=$(dirname "$path"); done
    [[ $path != /?* || ,$mounts, == *,$path:* ]] || mounts+=,$path:$path # what is relative lies below EMPG_HOME
  done
  IN_SRUN=() IN_TASK=() BINDING=()
  ! scontrol show config 2>/dev/null | grep -q 'TaskPlugin.*affinity' || BINDING=(--cpu-bind=none)
  if [ -z "$EMPG_CONTAINER" ]; then
    return
  elif srun --help 2>/dev/null | grep -q container-image; then
    IN_SRUN=(--container-image="$EMPG_CONTAINER" --container-workdir="$EMPG_HOME" --no-container-mount-home)
    IN_SRUN+=(--container-mounts="$mounts")
  elif command -v apptainer >/dev/null; then
    IN_TASK=(apptainer exec --nv --bind "$mounts" --pwd "$EMPG_HOME" "$EMPG_CONTAINER")
  else
    die configuration "EMPG_CONTAINER is set, but srun has no --container-image (Pyxis) and there is no apptainer"
  fi
}

# --- nodes -------------------------------------------------------------------------------------------------------

nodes_down() { # of the job's, those the controller has given up
  sinfo --noheader --Node --nodes="$SLURM_JOB_NODELIST" --format='%N %t' 2>/dev/null |
    awk '$2 ~ /^(down|fail)/ {print $1}' | sort -u
}

nodes_silent() { # of the job's, those on which nothing starts within 20 s
  local node
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    { timeout 20 srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" true >/dev/null 2>&1 || echo "$node"; } &
  done
  wait
}

nodes_unfit() { # those this job is to go on without: a line "job node what" each, written by the watchdog
  awk -v job="$SLURM_JOB_ID" '$1 == job {print $2}' "${run_folder:-}/bad_nodes" 2>/dev/null | sort -u
}

choose_nodes() { # TRAINERS and ROLLOUTS, in Slurm's order, of those that are up and fit; 1 when too few are
  local alive without
  without=$(nodes_down; nodes_unfit)
  mapfile -t alive < <(again scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxF "${without:- }")
  [ "${#alive[@]}" -ge $((EMPG_TRAINER_NODES + EMPG_ROLLOUT_NODES)) ] || return 1
  TRAINERS=("${alive[@]:0:EMPG_TRAINER_NODES}")
  ROLLOUTS=("${alive[@]:EMPG_TRAINER_NODES:EMPG_ROLLOUT_NODES}")
  find_addresses
  export EMPG_TRAINER_NODE_NAMES="${TRAINERS[*]}" EMPG_ROLLOUT_NODE_NAMES="${ROLLOUTS[*]}"
  # Below the ports that the kernel gives out, and apart from other jobs'.
  export EMPG_BASE_PORT="${EMPG_BASE_PORT:-$((10000 + SLURM_JOB_ID % 170 * 128))}"
  say "trainer on ${TRAINERS[*]}; rollout on ${ROLLOUTS[*]}; addresses ${EMPG_ADDRESSES}; ports from $EMPG_BASE_PORT"
}

find_addresses() { # EMPG_ADDRESSES "node=address …": of EMPG_INTERFACE on each node, else what Slurm knows
  local node address found=()
  for node in "${TRAINERS[@]}" "${ROLLOUTS[@]}"; do
    if [ -n "$EMPG_INTERFACE" ]; then
      address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ip -4 -oneline address show dev "$EMPG_INTERFACE" |
        awk 'NR == 1 {sub("/.*", "", $4); print $4}')
      [ -n "$address" ] || die configuration "EMPG_INTERFACE is $EMPG_INTERFACE, which has no IPv4 address on $node"
    else
      address=$(slurm_address "$node") || exit
    fi
    found+=("$node=$address")
  done
  refuse_unreachable "${found[@]}"
  export EMPG_ADDRESSES="${found[*]}"
}

slurm_address() { # slurm_address NODE: what Slurm knows as its address, names resolved; IPv4
  local given address fix="set EMPG_INTERFACE to an interface that has an IPv4 address on every node"
  given=$(again scontrol show node "$1" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
  if [[ $given == *:* ]]; then
    die configuration "node $1 has the IPv6 address $given in Slurm; the run's processes meet over IPv4: $fix"
  elif [[ $given =~ ^[0-9.]+$ ]]; then
    echo "$given"
  else
    address=$(getent ahostsv4 "$given" | awk '$1 !~ /^(127|169\.254|0)\./ {print $1; exit}')
    [ -n "$address" ] || die configuration "node $1, $given in Slurm, resolves to no IPv4 address that others reach: $fix"
    echo "$address"
  fi
}

refuse_unreachable() { # refuse_unreachable NODE=ADDRESS …: addresses that mean another machine on each node
  local pair address machines
  # Simulated nodes are one machine, and may meet over loopback.
  machines=$(for pair in "$@"; do machine_of "${pair%%=*}"; done | sort -u | wc -l)
  [ "$machines" -gt 1 ] || return 0
  for pair in "$@"; do
    address=${pair#*=}
    if [[ $address =~ ^(127|169\.254|0)\. ]]; then
      die configuration "node ${pair%%=*} has the address $address, which other nodes cannot reach (loopback and link-local ones belong to one machine or cable): mend NodeAddr in slurm.conf, or set EMPG_INTERFACE"
    fi
  done
}

machine_of() { # machine_of NODE: its host's name
  again scontrol show node "$1" --oneliner | sed -n 's/.* NodeHostName=\([^ ]*\).*/\1/p'
}

address_of() {
  local pair
  for pair in $EMPG_ADDRESSES; do [ "${pair%%=*}" != "$1" ] || echo "${pair#*=}"; done
}

# --- steps -------------------------------------------------------------------------------------------------------

step() { # step NAME "NODE …" TASKS_PER_NODE COMMAND…: a job step, its output in logs by node
  local name=$1 per_node=$3 nodes
  read -ra nodes <<<"$2"
  EMPG_LOG=$EMPG_LOGS/$name srun --overlap --job-name="$name" --kill-on-bad-exit=1 "${BINDING[@]}" \
    --nodes="${#nodes[@]}" --ntasks=$((${#nodes[@]} * per_node)) --ntasks-per-node="$per_node" \
    --nodelist="$(IFS=,; echo "${nodes[*]}")" \
    "${IN_SRUN[@]}" "${IN_TASK[@]}" bash slurm/env.sh "${@:4}" 9>&-
}

start() { # start NAME …: the same, not waited for
  step "$@" &
  PIDS[$1]=$!
}

stop_steps() { # end what still runs; Slurm kills what does not obey
  local pid id until=$((SECONDS + 40))
  [ "${#PIDS[@]}" -gt 0 ] || return 0
  for id in $(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format=%i 2>/dev/null); do
    if [[ $id =~ \.[0-9]+$ ]]; then scancel "$id" 2>/dev/null; fi
  done
  for pid in "${PIDS[@]}"; do
    while kill -0 "$pid" 2>/dev/null && ((SECONDS < until)); do sleep 0.2; done
    kill -KILL "$pid" 2>/dev/null
  done
  PIDS=()
}

healthy() { # healthy ADDRESS PORT: GET /health with the run's token, which stays out of every command line
  (
    exec 3<>"/dev/tcp/$1/$2" || exit 1
    printf 'GET /health HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n' "$EMPG_TOKEN" >&3
    read -r -t 10 answer <&3 && [[ $answer == *" 200 "* ]]
  ) 2>/dev/null
}

first_errors() { # first_errors STEP: of each of its logs the first error, as megatron_empg/common/log_ends.py finds it
  local name='([A-Za-z_][A-Za-z0-9_]*\.)*[A-Z][A-Za-z0-9_]*(Error|Exception)(: .|$)'
  grep -m 1 -HE "^(\([^)]*\) +)?(ERROR [^]]*\] +)?(error: .|$name)" "$EMPG_LOGS/$1."*.log | cut -c 1-1000
}

fail() { # fail STEP: the first errors of its logs and their ends, and its code
  first_errors "$1"
  tail -n 15 "$EMPG_LOGS/$1."*.log
  return "${CODES[$1]}"
}

pause() { # a sleep that signals interrupt
  sleep "$1" &
  wait $!
}

job_python() { # the package's answers; on this node, in the container where there is one
  if [ "${#IN_SRUN[@]}" -gt 0 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${IN_SRUN[@]}" "$EMPG_PYTHON" "$@"
  else
    "${IN_TASK[@]}" "$EMPG_PYTHON" "$@"
  fi
}

# --- the other jobs -------------------------------------------------------------------------------------------------

suite() { # suite ARGUMENTS…: tools/nccl_suite.py on every GPU of the job
  local per_node=${SLURM_NTASKS_PER_NODE:-8}
  defaults "${EMPG_LOGS:-}" "$@"
  EMPG_LOGS=${EMPG_LOGS:-$EMPG_HOME/runs/nccl_suite_$SLURM_JOB_ID}
  mkdir -p "$EMPG_LOGS"
  choose_nodes || die node "too few of $SLURM_JOB_NODELIST are up"
  export PYTHONUNBUFFERED=1 MASTER_PORT=$EMPG_BASE_PORT MASTER_ADDR
  MASTER_ADDR=$(address_of "${TRAINERS[0]}")
  step suite "${TRAINERS[*]}" "$per_node" "$EMPG_PYTHON" tools/nccl_suite.py --json "$EMPG_LOGS/nccl_suite.json" \
    --heat-map "$EMPG_LOGS/nccl_suite.png" "$@"
  local code=$?
  cat "$EMPG_LOGS/suite.${TRAINERS[0]}.0.log"
  say "logs, JSON and heat map in $EMPG_LOGS"
  exit "$code"
}

convert() { # convert ARGUMENTS…: tools/convert_checkpoint.py on this node
  defaults "$@"
  if [ $# -lt 3 ] || [[ ! $1 =~ ^to-(megatron|hf)$ ]]; then
    die configuration "give to-megatron SRC DST or to-hf SRC DST, and options"
  fi
  [ -d "$2" ] || die configuration "SRC is '$2': no such folder"
  job_python tools/convert_checkpoint.py "$@" || die conversion "see the lines above"
}

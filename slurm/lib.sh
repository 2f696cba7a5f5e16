# shellcheck shell=bash
# What the sbatch files share: variables, checks, steps, restarts. docs/slurm.md describes it.
# Nodes, roles, addresses and ports come from Slurm; names are never resolved on more than one node.

# Exit codes: what failed.
declare -A CODES=(
  [configuration]=10 [preflight]=11 [conversion]=12 [search]=13 [engines]=14 [driver]=15 [trainer]=16
  [watchdog]=17 [node]=18 [restarts]=19
)
declare -A PIDS=() # srun's process by the name of its step
OVERRIDES=() SBATCH_OPTIONS=() CHECK_ONLY=
# What `ask` learns of the recipe.
run_folder='' engines_per_node='' checkpoint='' finished='' corpus='' search_url=''

say() { printf '%(%F %T)T %s\n' -1 "$*"; }

die() { # die WHAT MESSAGE
  say "error ($1): $2" >&2
  exit "${CODES[$1]}"
}

again() { # again COMMAND…: Slurm's clients lose their connection now and then
  "$@" || { sleep 2 && "$@"; } || { sleep 5 && "$@"; }
}

# --- variables ---------------------------------------------------------------------------------------------------

defaults() { # what every script needs to know
  local name
  EMPG_HOME=$(cd "$EMPG_HOME" && pwd) && cd "$EMPG_HOME" || exit 10
  : "${EMPG_GPUS_PER_NODE:=$(given_gpus)}" "${EMPG_DEVICE:=cuda}" "${EMPG_INTERFACE:=}"
  : "${EMPG_CONTAINER:=}" "${EMPG_MOUNTS:=}" "${EMPG_RUN_FOLDER:=}" "${EMPG_RECIPE:=}"
  if [ -z "${EMPG_PYTHON:-}" ]; then
    EMPG_PYTHON=python3
    [ -n "$EMPG_CONTAINER" ] || [ ! -x .venv/bin/python ] || EMPG_PYTHON=$EMPG_HOME/.venv/bin/python
  fi
  [[ $EMPG_DEVICE =~ ^(cuda|cpu)$ ]] || die configuration "EMPG_DEVICE is '$EMPG_DEVICE'; allowed: cuda, cpu"
  choose_container
  for name in RECIPE TRAINER_NODES ROLLOUT_NODES GPUS_PER_NODE ENGINES_PER_NODE DEVICE CONTAINER PYTHON; do
    name=EMPG_$name
    [ -z "${!name:-}" ] || say "$name=${!name}"
  done
}

configure() { # configure ARGUMENTS…: what the environment and the arguments say of a run, all printed
  local word name
  for word in "$@"; do
    case $word in
      --check) CHECK_ONLY=1 ;;
      -*) SBATCH_OPTIONS+=("$word") ;;
      *=*) OVERRIDES+=("$word") ;;
      *) die configuration "argument '$word': give recipe keys as key=value, or --check with sbatch options" ;;
    esac
  done
  if [ "${#SBATCH_OPTIONS[@]}" -gt 0 ] && [ -z "$CHECK_ONLY" ]; then
    die configuration "'${SBATCH_OPTIONS[0]}' stands behind the script; sbatch options go before it"
  fi
  defaults
  : "${EMPG_ENGINES_PER_NODE:=}" "${EMPG_GPU_MEMORY:=80}" "${EMPG_MAX_RESTARTS:=20}" "${EMPG_PREFLIGHT:=1}"
  : "${EMPG_PREFLIGHT_ARGS:=}" "${EMPG_MODEL:=}" "${EMPG_MEGATRON_CHECKPOINT:=}"
  for name in EMPG_TRAINER_NODES EMPG_ROLLOUT_NODES EMPG_GPUS_PER_NODE; do
    [[ ${!name:-} =~ ^[1-9][0-9]*$ ]] || die configuration "$name is '${!name:-}'; set it to a number of 1 or more"
  done
  [[ $EMPG_MAX_RESTARTS =~ ^[0-9]+$ ]] || die configuration "EMPG_MAX_RESTARTS is '$EMPG_MAX_RESTARTS', not a number"
  [ -z "$EMPG_MODEL" ] || OVERRIDES=("model.path=$EMPG_MODEL" "${OVERRIDES[@]}")
  [ -z "$EMPG_RUN_FOLDER" ] || OVERRIDES=("run.folder=$EMPG_RUN_FOLDER" "${OVERRIDES[@]}")
  SHAPE=(--trainer-nodes "$EMPG_TRAINER_NODES" --rollout-nodes "$EMPG_ROLLOUT_NODES")
  SHAPE+=(--gpus-per-node "$EMPG_GPUS_PER_NODE" --gpu-memory "$EMPG_GPU_MEMORY")
  [ -z "$EMPG_ENGINES_PER_NODE" ] || SHAPE+=(--engines-per-node "$EMPG_ENGINES_PER_NODE")
  [ "$EMPG_DEVICE" = cuda ] || SHAPE+=(--cpu)
  say "overrides: ${OVERRIDES[*]:-none}"
}

script_option() { # script_option NAME: of --check's options, else of the script's #SBATCH lines
  local word
  for word in "${SBATCH_OPTIONS[@]}"; do
    case $word in "--$1="*) echo "${word#*=}" && return ;; esac
  done
  sed -n "s/^#SBATCH --$1=\([^ ]*\).*/\1/p" "$0" | tail -1
}

given_gpus() { # GPUs a node: Slurm's word in a job, else the script's
  local given=${SLURM_GPUS_PER_NODE:-$(script_option gpus-per-node)}
  echo "${given##*:}"
}

choose_container() { # IN_SRUN: options of srun (Pyxis); IN_TASK: words before a command (Apptainer)
  local mounts=$EMPG_HOME:$EMPG_HOME${EMPG_RUN_FOLDER:+,$EMPG_RUN_FOLDER:$EMPG_RUN_FOLDER}${EMPG_MOUNTS:+,$EMPG_MOUNTS}
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

# --- checks ------------------------------------------------------------------------------------------------------

job_python() { # the package's answers; on this node, in the container where there is one
  if [ "${#IN_SRUN[@]}" -gt 0 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" "${IN_SRUN[@]}" "$EMPG_PYTHON" "$@"
  else
    "${IN_TASK[@]}" "$EMPG_PYTHON" "$@"
  fi
}

ask() { # ask check|prepare|facts [OPTION…]: sets run_folder, checkpoint, finished … ; 1 when the recipe is refused
  local answer name value
  answer=$(job_python -m megatron_empg.trainer.slurm_job "$1" "$EMPG_RECIPE" "${OVERRIDES[@]}" "${SHAPE[@]}" "${@:2}") ||
    return 1
  while IFS='=' read -r name value; do
    case $name in
      run_folder | engines_per_node | checkpoint | finished | corpus | search_url)
        printf -v "$name" '%s' "$value" ;;
    esac
  done <<<"$answer"
}

check() { # everything that can be known before a step starts
  local needed=$((EMPG_TRAINER_NODES + EMPG_ROLLOUT_NODES)) nodes=${SLURM_JOB_NUM_NODES:-}
  nodes=${nodes:-$(script_option nodes)}
  nodes=${nodes##*-}
  [ "$nodes" -ge "$needed" ] || die configuration "--nodes is $nodes; EMPG_TRAINER_NODES + EMPG_ROLLOUT_NODES are $needed"
  if [ -n "$EMPG_MEGATRON_CHECKPOINT" ] && [ ! -d "$EMPG_MEGATRON_CHECKPOINT" ]; then
    die configuration "EMPG_MEGATRON_CHECKPOINT is '$EMPG_MEGATRON_CHECKPOINT': no such folder"
  fi
  [ -r "$EMPG_RECIPE" ] || die configuration "EMPG_RECIPE is '$EMPG_RECIPE': no such file below $EMPG_HOME"
  ask check || die configuration "nothing was started; mend the above and submit again"
  say "recipe, model, run folder and layout: well"
}

check_submission() { # what Slurm says of the script, without a job
  sbatch --test-only "${SBATCH_OPTIONS[@]}" "$0" || die configuration "Slurm refuses it (sbatch --test-only)"
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

choose_nodes() { # TRAINERS and ROLLOUTS, in Slurm's order, of those that are up; 1 when too few are
  local alive down
  down=$(nodes_down)
  mapfile -t alive < <(again scontrol show hostnames "$SLURM_JOB_NODELIST" | grep -vxF "${down:- }")
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
      [ -n "$address" ] || die configuration "EMPG_INTERFACE is $EMPG_INTERFACE, which has no address on $node"
    else
      address=$(again scontrol show node "$node" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
      if [[ ! $address =~ ^[0-9.]+$ ]]; then
        address=$(getent ahostsv4 "$address" | awk '$1 !~ /^127\./ {print $1; exit}')
        [ -n "$address" ] || die configuration "node $node resolves to no address that others reach; set EMPG_INTERFACE"
      fi
    fi
    found+=("$node=$address")
  done
  export EMPG_ADDRESSES="${found[*]}"
}

address_of() {
  local pair
  for pair in $EMPG_ADDRESSES; do [ "${pair%%=*}" != "$1" ] || echo "${pair#*=}"; done
}

# --- steps -------------------------------------------------------------------------------------------------------

step() { # step NAME "NODE …" TASKS_PER_NODE COMMAND…: a job step, its output in logs by node
  local name=$1 per_node=$3 nodes
  read -ra nodes <<<"$2"
  EMPG_LOG=$EMPG_LOGS/$name srun --overlap --nodes="${#nodes[@]}" --ntasks=$((${#nodes[@]} * per_node)) --ntasks-per-node="$per_node" \
    --nodelist="$(IFS=,; echo "${nodes[*]}")" "${BINDING[@]}" --kill-on-bad-exit=1 --job-name="$name" \
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

choose_search_service() { # SEARCH_SERVICE: its URL to be, on the first rollout node; none with search_url=
  SEARCH_SERVICE=()
  if [ -n "$search_url" ]; then
    say "searches go to $search_url"
  else
    SEARCH_SERVICE=(--search-service "http://$(address_of "${ROLLOUTS[0]}"):$((EMPG_BASE_PORT + 2))")
  fi
}

start_search_service() {
  local address port=$((EMPG_BASE_PORT + 2)) until=$((SECONDS + 300))
  [ "${#SEARCH_SERVICE[@]}" -gt 0 ] || return 0
  address=$(address_of "${ROLLOUTS[0]}")
  start search "${ROLLOUTS[0]}" 1 env CUDA_VISIBLE_DEVICES= "$EMPG_PYTHON" -m \
    megatron_empg.environments.deep_search.search_service "$corpus" --host "$address" --port "$port"
  until healthy "$address" "$port"; do
    if ! kill -0 "${PIDS[search]}" 2>/dev/null || ((SECONDS > until)); then
      fail search
      return
    fi
    pause 0.5
  done
  say "search service of $corpus at http://$address:$port: healthy"
}

fail() { # fail STEP: the end of its logs, and its code
  tail -n 15 "$EMPG_LOGS/$1."*.log
  return "${CODES[$1]}"
}

preflight() { # every node fit for the run?
  local device=(--gpu --gpus "$EMPG_GPUS_PER_NODE")
  [ "$EMPG_PREFLIGHT" != 0 ] || return 0
  [ "$EMPG_DEVICE" = cuda ] || device=(--no-gpu)
  # shellcheck disable=SC2086 # EMPG_PREFLIGHT_ARGS are words
  MASTER_ADDR=$(address_of "${TRAINERS[0]}") MASTER_PORT=$((EMPG_BASE_PORT + 3)) \
    step preflight "${TRAINERS[*]} ${ROLLOUTS[*]}" 1 "$EMPG_PYTHON" tools/preflight.py "$run_folder/recipe.yaml" \
    "${device[@]}" --json "$EMPG_LOGS/preflight.json" $EMPG_PREFLIGHT_ARGS || fail preflight || return
  say "preflight: $(grep -h '^preflight:' "$EMPG_LOGS"/preflight.*.log | head -1)"
}

convert_checkpoint() { # a Megatron checkpoint becomes the run's model, once
  [ -n "$EMPG_MEGATRON_CHECKPOINT" ] || return 0
  step conversion "${TRAINERS[0]}" 1 "$EMPG_PYTHON" tools/convert_checkpoint.py to-hf "$EMPG_MEGATRON_CHECKPOINT" \
    "$run_folder/model" ${EMPG_MODEL:+--like "$EMPG_MODEL"} || fail conversion
}

start_run() { # engines, driver, trainer ranks, and the watchdog beside them
  local recipe=$run_folder/recipe.yaml engines=() index=0 node number driver
  for node in "${ROLLOUTS[@]}"; do
    for ((number = 0; number < engines_per_node; number++)); do
      engines+=(--engine "http://$(address_of "$node"):$((EMPG_BASE_PORT + 8 + index))")
      index=$((index + 1))
    done
  done
  start engines "${ROLLOUTS[*]}" "$engines_per_node" "$EMPG_PYTHON" -m megatron_empg.trainer.slurm_job engine \
    "$recipe" --per-node "$engines_per_node"
  driver=$(address_of "${ROLLOUTS[0]}")
  start driver "${ROLLOUTS[0]}" 1 env CUDA_VISIBLE_DEVICES= "$EMPG_PYTHON" -m megatron_empg.trainer.driver "$recipe" \
    --host "$driver" --port $((EMPG_BASE_PORT + 1)) "${engines[@]}"
  start trainer "${TRAINERS[*]}" 1 "$EMPG_PYTHON" -m megatron_empg.trainer.slurm_job trainer "$recipe" \
    --driver "http://$driver:$((EMPG_BASE_PORT + 1))" "${engines[@]}"
  start watchdog "${TRAINERS[0]}" 1 env CUDA_VISIBLE_DEVICES= "$EMPG_PYTHON" -m megatron_empg.cluster.watchdog \
    "$run_folder" ${EMPG_STALL_SECONDS:+--stall "$EMPG_STALL_SECONDS"} ${EMPG_SILENCE_SECONDS:+--silence "$EMPG_SILENCE_SECONDS"}
}

pause() { # a sleep that signals interrupt
  sleep "$1" &
  wait $!
}

wait_for_end() { # until a step ends (ENDED, STATUS), or a node is lost (ENDED=node)
  local name look=$((SECONDS + 15))
  while :; do
    for name in search engines driver watchdog trainer; do
      if [ -n "${PIDS[$name]:-}" ] && ! kill -0 "${PIDS[$name]}" 2>/dev/null; then
        wait "${PIDS[$name]}"
        STATUS=$? ENDED=$name
        unset "PIDS[$name]"
        return
      fi
    done
    if ((SECONDS >= look)); then
      look=$((SECONDS + 15))
      if nodes_down | grep -qxF "$(printf '%s\n' "${TRAINERS[@]}" "${ROLLOUTS[@]}")"; then
        ENDED=node STATUS=1
        return
      fi
    fi
    pause 1
  done
}

# --- the run -----------------------------------------------------------------------------------------------------

attempt() { # one try, from preflight to the trainer's end; its code, or 100: to be restarted (WHY)
  local lost
  EMPG_LOGS=$run_folder/logs/$SLURM_JOB_ID.$(starts)
  export EMPG_RUN_FOLDER=$run_folder
  say "attempt $(starts): from step $checkpoint; logs in $EMPG_LOGS"
  choose_search_service
  prepare_folder || return
  convert_checkpoint && preflight && start_search_service || return
  start_run
  wait_for_end
  stop_steps
  if [ "$ENDED $STATUS" = "trainer 0" ]; then
    ask facts || return "${CODES[configuration]}"
    [ "$finished" = 0 ] && [ -n "${SIGNALLED:-}" ] && WHY="a signal came" && return 100
    return 0
  fi
  say "$ENDED ended with status $STATUS; its logs: $EMPG_LOGS/$ENDED.*"
  lost=$(nodes_silent)
  if [ -n "$lost" ]; then
    WHY="lost ${lost//$'\n'/ }" && return 100
  elif [ "$ENDED" = watchdog ] && [ "$STATUS" -eq "${CODES[watchdog]}" ]; then
    WHY="a rank hangs" && return 100
  fi
  fail "$ENDED"
}

prepare_folder() { # the resolved recipe in it, and this job its only one: the same lock as `empg train` takes
  exec 9>&-
  ask prepare --trainer-address "$(address_of "${TRAINERS[0]}")" "${SEARCH_SERVICE[@]}" ${EMPG_MEGATRON_CHECKPOINT:+"model.path=$run_folder/model"} ||
    return "${CODES[configuration]}"
  exec 9>>"$run_folder/.lock"
  flock --nonblock --conflict-exit-code 75 9
  [ $? -ne 75 ] || die configuration "another process trains in $run_folder; wait for it, or set EMPG_RUN_FOLDER"
  rm -rf "$run_folder/heartbeats"
  mkdir -p "$EMPG_LOGS" "$run_folder/flight_recorder"
  [ -z "${SIGNALLED:-}" ] || touch "$run_folder/STOP"
}

# $run_folder/starts: a line "job checkpoint" for each start, which the limits are read from.
starts() { grep -c "^$SLURM_JOB_ID " "$run_folder/starts"; }

may_restart() { # not too often, and not a third time from one checkpoint
  ask facts || return 1
  if [ "$(starts)" -gt "$EMPG_MAX_RESTARTS" ]; then
    say "restarted $EMPG_MAX_RESTARTS times (EMPG_MAX_RESTARTS): giving up"
  elif [ "$(tail -n 3 "$run_folder/starts" | grep -cx "$SLURM_JOB_ID $checkpoint")" -ge 3 ]; then
    say "two restarts brought no checkpoint after step $checkpoint: giving up"
  else
    return 0
  fi
  return 1
}

restart() { # in place when enough nodes are up, else as a new start of the same job
  local until=$((SECONDS + ${EMPG_NODE_TIMEOUT:-400})) code=${CODES[restarts]}
  say "$WHY"
  may_restart || exit "$code"
  say "newest checkpoint: step $checkpoint"
  if [[ $WHY == lost* ]]; then # Slurm must know of it, or would give us the node again
    until [ -n "$(nodes_down)" ] || ((SECONDS > until)); do pause 2; done
    if choose_nodes; then
      say "going on without it"
      return
    fi
  fi
  say "requeueing job $SLURM_JOB_ID"
  again scontrol requeue "$SLURM_JOB_ID" || exit "${CODES[node]}"
  pause 120
  exit "${CODES[node]}" # not reached: Slurm ends this start
}

on_signal() {
  SIGNALLED=1
  say "signal: ending after the running step, with a checkpoint"
  [ -z "${run_folder:-}" ] || touch "$run_folder/STOP"
}

train() { # train ARGUMENTS…: what a deepsearch script does
  configure "$@"
  check
  if [ -n "$CHECK_ONLY" ]; then
    check_submission
    exit 0
  fi
  EMPG_TOKEN=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  export EMPG_TOKEN PYTHONUNBUFFERED=1
  trap on_signal USR1
  trap stop_steps EXIT
  if ! mkdir -p "$run_folder" || ! touch "$run_folder/starts"; then die configuration "cannot write $run_folder"; fi
  [ "$finished" = 0 ] || { say "$run_folder has finished its steps; raise run.steps" && exit 0; }
  [ "$(starts)" -eq 0 ] || may_restart || exit "${CODES[restarts]}"
  choose_nodes || die node "too few of $SLURM_JOB_NODELIST are up"
  while :; do
    echo "$SLURM_JOB_ID $checkpoint" >>"$run_folder/starts"
    attempt && break || code=$?
    [ "$code" -eq 100 ] || die_with "$code"
    restart
  done
  ask facts
  job_python -m megatron_empg.cli report "$run_folder"
  say "ended at step $checkpoint; $([ "$finished" = 1 ] && echo "policy: $run_folder/policy" || echo "not finished: STOP")"
}

suite() { # suite ARGUMENTS…: tools/nccl_suite.py on every GPU of the job
  local per_node=${SLURM_NTASKS_PER_NODE:-8}
  defaults
  EMPG_LOGS=${EMPG_LOGS:-$PWD/runs/nccl_suite_$SLURM_JOB_ID}
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
  defaults
  if [ $# -lt 3 ] || [[ ! $1 =~ ^to-(megatron|hf)$ ]]; then
    die configuration "give to-megatron SRC DST or to-hf SRC DST, and options"
  fi
  [ -d "$2" ] || die configuration "SRC is '$2': no such folder"
  job_python tools/convert_checkpoint.py "$@" || die conversion "see the lines above"
}

die_with() { # by its code
  local name
  for name in "${!CODES[@]}"; do [ "${CODES[$name]}" -ne "$1" ] || die "$name" "see the lines above"; done
  exit "$1"
}

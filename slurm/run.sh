# shellcheck shell=bash
# A training run as a Slurm job: checks, steps, restarts. docs/slurm.md describes it.
source "$EMPG_HOME/slurm/lib.sh" || exit 10

OVERRIDES=() CHECK_ONLY=
# What `ask` learns of the recipe; `services` are words "NAME SETTING TOKEN_VARIABLE" for each.
run_folder='' engines_per_node='' checkpoint='' finished='' environment='' services=''

configure() { # configure ARGUMENTS…: what the environment and the arguments say of a run, all printed
  local word name paths=("${EMPG_RUN_FOLDER:-}" "${EMPG_MODEL:-}" "${EMPG_MEGATRON_CHECKPOINT:-}" "${EMPG_DATA:-}")
  for word in "$@"; do
    case $word in
      --check) CHECK_ONLY=1 ;;
      -*) SBATCH_OPTIONS+=("$word") ;;
      *=*) OVERRIDES+=("$word") && paths+=("${word#*=}") ;;
      *) die configuration "argument '$word': give recipe keys as key=value, or --check with sbatch options" ;;
    esac
  done
  if [ "${#SBATCH_OPTIONS[@]}" -gt 0 ] && [ -z "$CHECK_ONLY" ]; then
    die configuration "'${SBATCH_OPTIONS[0]}' stands behind the script; sbatch options go before it"
  fi
  defaults "${paths[@]}"
  : "${EMPG_ENGINES_PER_NODE:=}" "${EMPG_GPU_MEMORY:=79}" "${EMPG_MAX_RESTARTS:=20}" "${EMPG_PREFLIGHT:=1}"
  : "${EMPG_PREFLIGHT_ARGS:=}" "${EMPG_MODEL:=}" "${EMPG_MEGATRON_CHECKPOINT:=}" "${EMPG_DATA:=}" "${EMPG_MINIATURE:=0}"
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
  [[ $EMPG_MINIATURE =~ ^[01]$ ]] || die configuration "EMPG_MINIATURE is '$EMPG_MINIATURE'; allowed: 0, 1"
  [ -z "$EMPG_DATA" ] || SHAPE+=(--data "$EMPG_DATA")
  [ "$EMPG_MINIATURE" = 0 ] || SHAPE+=(--miniature)
  say "overrides: ${OVERRIDES[*]:-none}"
}

# --- checks ------------------------------------------------------------------------------------------------------

ask() { # ask check|prepare|facts [OPTION…]: sets run_folder, checkpoint, finished … ; 1 when the recipe is refused
  local answer name value
  answer=$(job_python -m megatron_empg.launch.tasks "$1" "$EMPG_RECIPE" "${OVERRIDES[@]}" "${SHAPE[@]}" "${@:2}") ||
    return 1
  while IFS='=' read -r name value; do
    case $name in
      run_folder | engines_per_node | checkpoint | finished | environment | services)
        printf -v "$name" '%s' "$value" ;;
    esac
  done <<<"$answer"
}

check() { # everything that can be known before a step starts
  local needed=$((EMPG_TRAINER_NODES + EMPG_ROLLOUT_NODES)) given=${SLURM_JOB_NUM_NODES:-}
  given=${given:-$(script_option nodes)}
  given=${given##*-}
  [ "$given" -ge "$needed" ] ||
    die configuration "--nodes is $given; EMPG_TRAINER_NODES + EMPG_ROLLOUT_NODES are $needed"
  if [ -n "$EMPG_MEGATRON_CHECKPOINT" ] && [ ! -d "$EMPG_MEGATRON_CHECKPOINT" ]; then
    die configuration "EMPG_MEGATRON_CHECKPOINT is '$EMPG_MEGATRON_CHECKPOINT': no such folder"
  fi
  [ -r "$EMPG_RECIPE" ] || die configuration "EMPG_RECIPE is '$EMPG_RECIPE': no such file below $EMPG_HOME"
  check_python
  ask check ${CHECK_ONLY:+--play} || die configuration "nothing was started; mend the above and submit again"
  say "recipe, model, run folder and layout: well"
}

check_python() { # has it what the checks import?
  local find='import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("pydantic", "transformers", "typer", "yaml"))))'
  job_python -c "$find" ||
    die configuration "EMPG_PYTHON is '$EMPG_PYTHON', which lacks packages that megatron_empg needs: install them there (README.md, 'On a cluster'; without a GPU 'make setup'), or set EMPG_PYTHON to a Python that has them"
}

check_submission() { # what Slurm says of the script, without a job
  if ! command -v sbatch >/dev/null; then
    say "recipe and model are well; Slurm was not asked, since this machine has no sbatch: check again on a login node" >&2
    exit "${CODES[configuration]}"
  fi
  sbatch --test-only "${SBATCH_OPTIONS[@]}" "$SCRIPT" || die configuration "Slurm refuses it (sbatch --test-only)"
}

# --- steps -------------------------------------------------------------------------------------------------------

choose_services() { # SERVICES, SERVICE_SETTINGS, SERVICE_URLS: what the environment wants, on the first rollout node
  local words ports=(2 5 6 7) address
  SERVICES=() SERVICE_SETTINGS=() SERVICE_URLS=()
  address=$(address_of "${ROLLOUTS[0]}")
  read -ra words <<<"$services"
  while [ "${#words[@]}" -gt 0 ]; do
    export "${words[2]}=$EMPG_TOKEN"
    SERVICE_URLS+=("http://$address:$((EMPG_BASE_PORT + ports[${#SERVICES[@]}]))")
    SERVICES+=("${words[0]}") SERVICE_SETTINGS+=("${words[1]}")
    CODES[${words[0]}]=${CODES[search]}
    words=("${words[@]:3}")
  done
}

start_guard() { # on a node other than this one
  local node
  node=$(printf '%s\n' "${ROLLOUTS[@]}" "${TRAINERS[@]}" | grep -vxF -m 1 "$SLURMD_NODENAME")
  EMPG_LOGS=$EMPG_LOGS srun --overlap --job-name=guard --nodes=1 --ntasks=1 --nodelist="$node" \
    bash slurm/guard.sh "$SLURMD_NODENAME" 9>&- &
  PIDS[guard]=$!
}

start_services() {
  local index without=()
  for index in "${!SERVICES[@]}"; do without+=(--without "${SERVICE_SETTINGS[index]}"); done
  for index in "${!SERVICES[@]}"; do
    start_service "${SERVICES[index]}" "${SERVICE_URLS[index]#http://}" || return
  done
}

start_service() { # start_service NAME ADDRESS:PORT: and wait until it is healthy; the environment knows its command
  local until=$((SECONDS + 300))
  start "$1" "${ROLLOUTS[0]}" 1 env CUDA_VISIBLE_DEVICES= "$EMPG_PYTHON" -m megatron_empg.launch.tasks service \
    "$run_folder/recipe.yaml" "$1" --host "${2%:*}" --port "${2#*:}" "${without[@]}"
  until healthy "${2%:*}" "${2#*:}"; do
    if ! kill -0 "${PIDS[$1]}" 2>/dev/null || ((SECONDS > until)); then
      fail "$1"
      return
    fi
    pause 0.5
  done
  say "$1 service of $environment at http://$2: healthy"
}

preflight() { # every node fit for the run?
  local device=(--gpu --gpus "$EMPG_GPUS_PER_NODE") first=$((EMPG_BASE_PORT + 8)) ports
  [ "$EMPG_PREFLIGHT" != 0 ] || return 0
  ports=$EMPG_BASE_PORT-$((EMPG_BASE_PORT + 2)),$((EMPG_BASE_PORT + 4))-$((first + EMPG_ROLLOUT_NODES * engines_per_node - 1))
  [ "$EMPG_DEVICE" = cuda ] || device=(--no-gpu)
  # shellcheck disable=SC2086 # EMPG_PREFLIGHT_ARGS are words
  MASTER_ADDR=$(address_of "${TRAINERS[0]}") MASTER_PORT=$((EMPG_BASE_PORT + 3)) \
    step preflight "${TRAINERS[*]} ${ROLLOUTS[*]}" 1 "$EMPG_PYTHON" tools/preflight.py "$run_folder/recipe.yaml" \
    "${device[@]}" --ports "$ports" --json "$EMPG_LOGS/preflight.json" $EMPG_PREFLIGHT_ARGS || fail preflight || return
  say "preflight: $(grep -h '^preflight:' "$EMPG_LOGS"/preflight.*.log | head -1)"
}

convert_checkpoint() { # a Megatron checkpoint becomes the run's model, once
  [ -n "$EMPG_MEGATRON_CHECKPOINT" ] || return 0
  step conversion "${TRAINERS[0]}" 1 "$EMPG_PYTHON" tools/convert_checkpoint.py to-hf "$EMPG_MEGATRON_CHECKPOINT" \
    "$run_folder/model" ${EMPG_MODEL:+--like "$EMPG_MODEL"} || fail conversion
}

start_run() { # engines, driver, trainer ranks, and the watchdog beside them
  local recipe=$run_folder/recipe.yaml engines=() index=0 node number driver gpus=()
  for node in "${ROLLOUTS[@]}"; do
    for ((number = 0; number < engines_per_node; number++)); do
      engines+=(--engine "http://$(address_of "$node"):$((EMPG_BASE_PORT + 8 + index))")
      index=$((index + 1))
    done
  done
  [ "$EMPG_DEVICE" = cpu ] || gpus=(--gpus-per-node "$EMPG_GPUS_PER_NODE")
  start engines "${ROLLOUTS[*]}" "$engines_per_node" "$EMPG_PYTHON" -m megatron_empg.launch.tasks engine \
    "$recipe" --per-node "$engines_per_node" "${gpus[@]}"
  driver=$(address_of "${ROLLOUTS[0]}")
  start driver "${ROLLOUTS[0]}" 1 env CUDA_VISIBLE_DEVICES= "$EMPG_PYTHON" -m megatron_empg.launch.rollout_service "$recipe" \
    --host "$driver" --port $((EMPG_BASE_PORT + 1)) "${engines[@]}"
  export EMPG_WEIGHTS_PORT=$((EMPG_BASE_PORT + 4)) # where the trainer's rank 0 and the engines meet
  start trainer "${TRAINERS[*]}" 1 "$EMPG_PYTHON" -m megatron_empg.launch.tasks trainer "$recipe" \
    --driver "http://$driver:$((EMPG_BASE_PORT + 1))" "${engines[@]}"
  start watchdog "${TRAINERS[*]} ${ROLLOUTS[*]}" 1 env CUDA_VISIBLE_DEVICES= "$EMPG_PYTHON" -m megatron_empg.cluster.watchdog \
    "$run_folder" ${EMPG_STALL_SECONDS:+--stall "$EMPG_STALL_SECONDS"} \
    ${EMPG_SILENCE_SECONDS:+--silence "$EMPG_SILENCE_SECONDS"}
}

wait_for_end() { # until a step ends (ENDED, STATUS), or a node is lost (ENDED=node)
  local name look=$((SECONDS + 15))
  while :; do
    for name in "${SERVICES[@]}" engines driver watchdog trainer; do
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

attempt() { # one try, from preflight to the trainer's end; its code, or 100: to be restarted (WHY, and WITHOUT nodes)
  WHY='' WITHOUT=''
  EMPG_LOGS=$run_folder/logs/$SLURM_JOB_ID.$(starts)
  export EMPG_RUN_FOLDER=$run_folder
  say "attempt $(starts): from step $checkpoint; logs in $EMPG_LOGS"
  choose_services
  prepare_folder || return
  start_guard
  convert_checkpoint && preflight && start_services || return
  start_run
  wait_for_end
  stop_steps
  if [ "$ENDED $STATUS" = "trainer 0" ]; then
    ask facts || return "${CODES[configuration]}"
    [ "$finished" = 0 ] && [ -n "${SIGNALLED:-}" ] && WHY="a signal came" && return 100
    return 0
  fi
  say "$ENDED ended with status $STATUS; its logs: $EMPG_LOGS/$ENDED.*"
  WITHOUT=$(nodes_silent)
  if [ -n "$WITHOUT" ]; then
    WHY="lost ${WITHOUT//$'\n'/ }" && return 100
  elif [ "$ENDED" = watchdog ] && WHY=$(grep -hE '^watchdog: (hanging|unfit)' "$EMPG_LOGS"/watchdog.*.log); then
    # The step's own status is that of a task which was killed when the first ended.
    WITHOUT=$(nodes_unfit | grep -xF "$(printf '%s\n' "${TRAINERS[@]}" "${ROLLOUTS[@]}")")
    return 100
  fi
  fail "$ENDED"
}

prepare_folder() { # the resolved recipe in it, and this job its only one: the same lock as `empg train` takes
  exec 9>&-
  local index given=()
  for index in "${!SERVICES[@]}"; do given+=(--service "${SERVICE_SETTINGS[index]}=${SERVICE_URLS[index]}"); done
  ask prepare --trainer-address "$(address_of "${TRAINERS[0]}")" "${given[@]}" ||
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

restart() { # in place when enough nodes are up and fit, else as a new start of the same job
  local until=$((SECONDS + ${EMPG_NODE_TIMEOUT:-400})) code=${CODES[restarts]}
  say "$WHY"
  may_restart || exit "$code"
  say "newest checkpoint: step $checkpoint"
  if [ -n "$WITHOUT" ]; then
    # Slurm must know of a lost node, or would give it to us again.
    if [[ $WHY == lost* ]]; then until [ -n "$(nodes_down)" ] || ((SECONDS > until)); do pause 2; done; fi
    if choose_nodes; then
      say "going on without ${WITHOUT//$'\n'/ }"
      return
    fi
  fi
  requeue
}

requeue() { # a new start of this job, on other nodes than those it is to go on without
  local unfit given
  say "requeueing job $SLURM_JOB_ID"
  unfit=$(nodes_unfit | paste -sd,)
  given=$(again scontrol show job "$SLURM_JOB_ID" --oneliner | sed -n 's/.* ExcNodeList=\([^ (]*\).*/\1/p')
  trap '' TERM # comes with the requeueing; only a job that waits can be told which nodes to leave out
  again scontrol requeue "$SLURM_JOB_ID" || exit "${CODES[node]}"
  [ -z "$unfit" ] || again scontrol update "JobId=$SLURM_JOB_ID" "ExcNodeList=$unfit${given:+,$given}"
  trap - TERM
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
  [ -n "${SLURM_JOB_ID:-}$CHECK_ONLY" ] || die configuration "this is no Slurm job: use sbatch, or --check"
  check
  if [ -n "$CHECK_ONLY" ]; then
    check_submission
    exit 0
  fi
  [ -z "$EMPG_MEGATRON_CHECKPOINT" ] || OVERRIDES+=("model.path=$run_folder/model") # made by the job's first step
  EMPG_TOKEN=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
  export EMPG_TOKEN PYTHONUNBUFFERED=1
  trap on_signal USR1
  trap stop_steps EXIT
  if ! mkdir -p "$run_folder" || ! touch "$run_folder/starts"; then die configuration "cannot write $run_folder"; fi
  [ "$finished" = 0 ] || { say "$run_folder has finished its steps; raise run.steps" && exit 0; }
  [ "$(starts)" -eq 0 ] || may_restart || exit "${CODES[restarts]}"
  choose_nodes || die node "too few of $SLURM_JOB_NODELIST are up and fit; $run_folder/bad_nodes names GPU errors"
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

die_with() { # by its code
  local name
  for name in "${!CODES[@]}"; do [ "${CODES[$name]}" -ne "$1" ] || die "$name" "see the lines above"; done
  exit "$1"
}

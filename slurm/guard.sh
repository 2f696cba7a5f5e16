#!/usr/bin/env bash
# guard.sh NODE: a start anew when NODE is lost, on which the job's own script ran. A step on another node, since
# under --no-kill Slurm itself does nothing then: the job would hold its other nodes until the time limit.
# shellcheck source=slurm/lib.sh
source "$(dirname "$0")/lib.sh" || exit 10

while sleep 10; do
  nodes_down | grep -qxF "$1" || continue
  say "lost $1, where the job's script ran: requeueing job $SLURM_JOB_ID"
  again scontrol requeue "$SLURM_JOB_ID"
  exit
done >>"$EMPG_LOGS/guard.log" 2>&1

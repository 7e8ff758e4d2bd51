#!/usr/bin/env bash
# Submits a run to SLURM: one process a node, all GPUs of a node in it.
#
#   launch/slurm.sh [--dry-run] NODES CONFIG [jgpt.main's other arguments]
#
# Settings: GPUS (a node, 8), CPUS (a node, 32), TIME (of one job, 24:00:00), SBATCH_FLAGS (such as
# --partition=NAME), WORKDIR, PYTHON. Before the time limit SIGTERM saves a checkpoint and the job
# queues again; so it does when a node is lost.
set -euo pipefail
DRY=
if [[ ${1:-} == --dry-run ]]; then
  DRY=1
  shift
fi
NODES=${1:?the first argument is the number of nodes}
CONFIG=${2:?the second argument is a config file}
shift 2
home=$(cd "$(dirname "$0")/.." && pwd)
flags=()
read -r -a flags <<<"${SBATCH_FLAGS:-}"
command=(sbatch --nodes="$NODES" --gpus-per-node="${GPUS:-8}" --cpus-per-task="${CPUS:-32}"
  --time="${TIME:-24:00:00}" --chdir="$home" ${flags[@]+"${flags[@]}"}
  launch/slurm.sbatch "$CONFIG" "$@")
if [[ $DRY ]]; then
  printf '%q ' "${command[@]}"
  echo
  DRY_RUN=1 bash "$home/launch/slurm.sbatch" "$CONFIG" "$@"
else
  cd "$home"
  "${command[@]}"
fi

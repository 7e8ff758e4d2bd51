#!/usr/bin/env bash
# One config on every host of a TPU pod slice, from the request for it to its end.
#
#   launch/tpu_pod.sh [--dry-run] create                 request the slice (queued resource), wait for it
#   launch/tpu_pod.sh [--dry-run] run CONFIG [ARGUMENT...]   install, start on all hosts, follow the log
#   launch/tpu_pod.sh [--dry-run] tail CONFIG            follow the log of a run
#   launch/tpu_pod.sh [--dry-run] resume CONFIG [ARGUMENT...]
#                      run until it has finished, ATTEMPTS (20) times at most; after a preemption,
#                      request the slice again and go on from the newest checkpoint
#   launch/tpu_pod.sh [--dry-run] delete                 give the slice back
#
# Settings: PROJECT, ZONE, TYPE (such as v5litepod-16), BUCKET (name of the storage bucket that holds
# the runs; needed by run and resume), NAME (jgpt), VERSION (of the TPU software), REPOSITORY, COMMIT,
# and CREATE_FLAGS (such as --spot or --node-count=2, for several slices).
# --dry-run prints the commands, one a line, and touches nothing.
set -euo pipefail
here=$(dirname "$0")
DRY=
if [[ ${1:-} == --dry-run ]]; then
  DRY=1
  shift
fi
action=${1:?the first argument is create, run, tail, resume or delete}
shift
: "${PROJECT:?set PROJECT to the cloud project}" "${ZONE:?set ZONE}"
NAME=${NAME:-jgpt}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
TPU=(gcloud compute tpus)
WHERE=(--project="$PROJECT" --zone="$ZONE")

do_it() {
  if [[ $DRY ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

state() {
  "${TPU[@]}" queued-resources describe "$NAME" "${WHERE[@]}" --format='value(state.state)' 2>/dev/null ||
    echo ABSENT
}

create() {
  : "${TYPE:?set TYPE, e.g. v5litepod-16}"
  local flags=()
  read -r -a flags <<<"${CREATE_FLAGS:-}"
  do_it "${TPU[@]}" queued-resources create "$NAME" "${WHERE[@]}" --node-id="$NAME" \
    --accelerator-type="$TYPE" --runtime-version="$VERSION" ${flags[@]+"${flags[@]}"}
  [[ $DRY ]] || wait_until_active
}

wait_until_active() {
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    if [[ $now == FAILED || $now == SUSPENDED || $now == ABSENT ]]; then
      echo "error: the queued resource $NAME is $now; delete it and create it again" >&2
      exit 1
    fi
    echo "$NAME is $now"
    sleep 30
  done
}

everywhere() { do_it "${TPU[@]}" tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --command="$2"; }

install() {
  local repository=${REPOSITORY:-$(git -C "$here" config --get remote.origin.url || true)}
  : "${repository:?set REPOSITORY to the address that the hosts clone from}"
  everywhere all "set -e
test -d jgpt || git clone '$repository' jgpt
mkdir -p ~/runs
mountpoint -q ~/runs || gcsfuse --implicit-dirs '${BUCKET:?set BUCKET to the name of the bucket of the runs}' ~/runs
cd jgpt && git fetch -q && git checkout -q '${COMMIT:-$(git -C "$here" rev-parse HEAD)}'
test -d .venv || python3 -m venv .venv
.venv/bin/pip install -q -e '.[tpu,data]'"
}

start() {
  local config=${1:?the next argument is a config file}
  shift
  local run arguments=
  run=$(basename "$config" .py)
  (($# == 0)) || arguments=$(printf ' %q' "$@")
  everywhere all "set -o pipefail; cd jgpt && .venv/bin/python -m jgpt.main --config='$config' --workdir=\$HOME/runs/$run$arguments 2>&1 | tee -a ~/$run.log"
}

resume() {
  local status=0 attempt
  for ((attempt = 1; attempt <= ${ATTEMPTS:-20}; attempt++)); do
    [[ ! $DRY && $(state) == ACTIVE ]] || { delete && create; }
    status=0
    { install && start "$@"; } || status=$?
    # Finished, or something to correct. All else may be the slice's doing.
    [[ $DRY || $status == 0 || $status == 2 ]] && return "$status"
    echo "the run ended with status $status; going on from its newest checkpoint" >&2
    sleep 30
  done
  echo "error: ended with status $status $((attempt - 1)) times (ATTEMPTS); read the log" >&2
  return "$status"
}

delete() {
  if [[ $DRY || $(state) != ABSENT ]]; then
    do_it "${TPU[@]}" queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
  fi
}

case $action in
  create | delete) "$action" ;;
  run)
    install
    start "$@"
    ;;
  resume) resume "$@" ;;
  tail) everywhere 0 "tail -n 100 -F ~/$(basename "${1:?the next argument is a config file}" .py).log" ;;
  *)
    echo "error: unknown action $action; use create, run, tail, resume or delete" >&2
    exit 2
    ;;
esac

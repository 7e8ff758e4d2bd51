#!/usr/bin/env bash
# Several processes of one run on this machine, which meet over loopback.
#
#   launch/local.sh [--dry-run] N CONFIG [jgpt.main's other arguments]
#
# Ends with the status of the first process that did not end well. SIGTERM and Ctrl-C save first.
# The processes share the machine's accelerators only where JAX is told how (CUDA_VISIBLE_DEVICES or
# JAX_LOCAL_DEVICE_IDS); on CPU each is a device of its own.
set -euo pipefail
run=(env)
if [[ ${1:-} == --dry-run ]]; then
  run=(echo env)
  shift
fi
N=${1:?the first argument is the number of processes}
CONFIG=${2:?the second argument is a config file}
shift 2
PYTHON=${PYTHON:-python}
PORT=${PORT:-$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}

processes=()
trap 'kill -TERM "${processes[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < N; i++)); do
  "${run[@]}" JGPT_COORDINATOR="127.0.0.1:$PORT" JGPT_NUM_PROCESSES="$N" JGPT_PROCESS_ID="$i" \
    "$PYTHON" -m jgpt.main --config="$CONFIG" "$@" &
  processes+=($!)
done

status=0
for process in "${processes[@]}"; do
  while true; do # a trapped signal ends `wait`, and not the process
    code=0
    wait "$process" || code=$?
    kill -0 "$process" 2>/dev/null || break
  done
  ((status)) || status=$code
done
exit "$status"

#!/usr/bin/env bash
# Creates a TPU pod slice (if it is not there), installs jgpt on every host, and runs one config on
# all of them. Run again after a pre-emption: the run goes on from its newest good checkpoint.
#
#   PROJECT=my-project ZONE=us-west4-a TYPE=v5litepod-16 NAME=jgpt BUCKET=my-bucket \
#     launch/tpu_pod.sh configs/llama_1b.py --config.data.sources='jsonl:/mnt/data/*.jsonl.zst'
set -euo pipefail
: "${PROJECT:?set PROJECT to the cloud project}" "${ZONE:?set ZONE}" "${TYPE:?set TYPE, e.g. v5litepod-16}"
: "${BUCKET:?set BUCKET to the storage bucket (its name) that holds the runs}"
NAME=${NAME:-jgpt}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
REPOSITORY=${REPOSITORY:-$(git config --get remote.origin.url)}
COMMIT=$(git rev-parse HEAD)
CONFIG=${1:?the first argument is a config file}
shift
ARGUMENTS=$(printf ' %q' "$@")
RUN_NAME=$(basename "$CONFIG" .py)
TPU=(gcloud compute tpus tpu-vm)
WHERE=(--project="$PROJECT" --zone="$ZONE")

"${TPU[@]}" describe "$NAME" "${WHERE[@]}" >/dev/null 2>&1 ||
  "${TPU[@]}" create "$NAME" "${WHERE[@]}" --accelerator-type="$TYPE" --version="$VERSION"

"${TPU[@]}" ssh "$NAME" "${WHERE[@]}" --worker=all --command="
  set -e
  test -d jgpt || git clone '$REPOSITORY' jgpt
  mkdir -p ~/runs
  mountpoint -q ~/runs || gcsfuse --implicit-dirs '$BUCKET' ~/runs
  cd jgpt && git fetch -q && git checkout -q '$COMMIT'
  test -d .venv || python3 -m venv .venv
  .venv/bin/pip install -q -e '.[tpu,data]'
  JGPT_DISTRIBUTED=1 .venv/bin/python -m jgpt.main --config='$CONFIG' --workdir=\$HOME/runs/$RUN_NAME$ARGUMENTS
"

#!/usr/bin/env bash
# A run on a GKE node pool: fills launch/gke.yaml in and gives it to the cluster.
#
#   launch/gke.sh [--dry-run] apply CONFIG [jgpt.main's other arguments]
#   launch/gke.sh [--dry-run] tail
#   launch/gke.sh [--dry-run] delete
#
# Settings: IMAGE, BUCKET (needed by apply), NAME (jgpt), HOSTS (4), CHIPS (a host, 4), ACCELERATOR
# (tpu-v5-lite-podslice), TOPOLOGY (4x4), SLICES (1).
# The image has the repository at /jgpt and `pip install -e '/jgpt[tpu,data]'`.
# --dry-run prints the manifest or the command.
set -euo pipefail
here=$(dirname "$0")
DRY=
if [[ ${1:-} == --dry-run ]]; then
  DRY=1
  shift
fi
action=${1:?the first argument is apply, tail or delete}
shift
NAME=${NAME:-jgpt}

manifest() {
  local config=${1:?the next argument is a config file}
  : "${IMAGE:?set IMAGE to the container image}" "${BUCKET:?set BUCKET to the name of the bucket of the runs}"
  local run argument arguments=
  run=$(basename "$config" .py)
  shift
  for argument in "--config=$config" "--workdir=/runs/$run" "$@"; do
    arguments+="                    - '${argument//\'/\'\'}'"$'\n'
  done
  local text
  text=$(<"$here/gke.yaml")
  text=${text//'{NAME}'/$NAME}
  text=${text//'{IMAGE}'/$IMAGE}
  text=${text//'{BUCKET}'/$BUCKET}
  text=${text//'{HOSTS}'/${HOSTS:-4}}
  text=${text//'{CHIPS}'/${CHIPS:-4}}
  text=${text//'{SLICES}'/${SLICES:-1}}
  text=${text//'{ACCELERATOR}'/${ACCELERATOR:-tpu-v5-lite-podslice}}
  text=${text//'{TOPOLOGY}'/${TOPOLOGY:-4x4}}
  echo "${text/'                    {ARGUMENTS}'/${arguments%$'\n'}}"
}

do_it() {
  if [[ $DRY ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

case $action in
  apply)
    filled=$(manifest "$@")
    if [[ $DRY ]]; then
      echo "$filled"
    else
      kubectl apply -f - <<<"$filled"
    fi
    ;;
  tail) do_it kubectl logs --follow --tail=100 "--selector=jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0" ;;
  delete) do_it kubectl delete jobset "$NAME" ;;
  *)
    echo "error: unknown action $action; use apply, tail or delete" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# The same command on all hosts of a TPU slice, from a machine with gcloud:
#   NAME=my-slice ZONE=us-east5-a docs/launch/tpu_pod.sh configs/imagenet256_dit_xl2.py --workdir gs-mounted/runs/x
# The repository lies at ~/jaxdiff on every host, with its environment in .venv; the run's folder is one that all see.
set -euo pipefail

command=$(printf '%q ' .venv/bin/python "${PROGRAM:-train.py}" "$@" --distributed auto)
gcloud compute tpus tpu-vm ssh "${NAME:?name of the slice}" --zone "${ZONE:?its zone}" --worker=all \
  --command "cd jaxdiff && exec $command"

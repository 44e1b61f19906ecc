#!/bin/bash
# One net on all hosts of a Cloud TPU slice: TPU=my-slice ZONE=us-east5-a bash tpu.sh
set -euo pipefail

tpu=${TPU:?the name of the slice} zone=${ZONE:?its zone} run=${RUN:-/mnt/runs/mnist}  # on a disk that all hosts see
first="jbp train --coordinator auto --data mnist --batch-size 256 --out $run"
again="jbp train --coordinator auto --resume $run"
exec gcloud compute tpus tpu-vm ssh "$tpu" --zone "$zone" --worker all \
  --command "if [ -e $run/config.json ]; then exec $again; else exec $first; fi"

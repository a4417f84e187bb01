#!/usr/bin/env bash
# Train the retrieval encoder; interrupted, it goes on where it stopped.
#
#   bash train_ae_delta.sh                                        # configs/ae_delta.yaml on datasets/, all GPUs
#   CONFIG=configs/tinyworld_ae.yaml bash train_ae_delta.sh       # a laptop is enough
#   CONFIG=configs/base_ae.yaml bash train_ae_delta.sh            # reconstruction only
#   GPU=0,1 bash train_ae_delta.sh data_dir=toydatasets epochs=50 tag=toy tracker=wandb
#
# CONFIG: settings. GPU: which GPUs, one process each (none: one CPU process). PORT: torchrun's, default 29500.
set -euo pipefail
source "$(dirname "$0")/utils/env.sh"
use_environment
CONFIG=${CONFIG:-configs/ae_delta.yaml}
echo "retrieval encoder: $CONFIG $*"
launch_torchrun -m ae.train "$CONFIG" "$@"

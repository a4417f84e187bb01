#!/usr/bin/env bash
# Train the retrieval encoder; interrupted, it goes on where it stopped.
#
#   bash train_ae_delta.sh                                        # ae/configs/ae_delta.yaml on datasets/, all GPUs
#   bash train_ae_delta.sh ae/configs/tinyworld_ae.yaml           # a laptop is enough
#   bash train_ae_delta.sh ae/configs/base_ae.yaml                # reconstruction only
#   CONFIG=ae/configs/utility.yaml bash train_ae_delta.sh         # the encoder of usefulness
#   GPU=0,1 bash train_ae_delta.sh data_dir=toydatasets epochs=50 tag=toy tracker=wandb
#
# GPU: which GPUs, one process each (none: one CPU process). NNODES, NODE_RANK, MASTER_ADDR, PORT: as generate_latent.sh.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
choose_config ae/configs/ae_delta.yaml "$@"
use_environment
echo "retrieval encoder: $config ${settings[*]}"
launch ae.train "$config" "${settings[@]}"

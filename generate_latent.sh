#!/usr/bin/env bash
# Generate a corpus of latents for the retrieval encoder; interrupted, it goes on where it stopped.
#
#   bash generate_latent.sh                                               # configs/generate_latent.yaml, all GPUs
#   NGPU=4 GPUS=0,1,2,3 bash generate_latent.sh sample_ratio=0.05
#   CONFIG=configs/tinyworld_generate_latent.yaml bash generate_latent.sh   # a laptop is enough
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash generate_latent.sh        # on each of several machines
#   srun --nodes=2 --ntasks-per-node=1 bash -c 'NNODES=2 NODE_RANK=$SLURM_NODEID MASTER_ADDR=$(scontrol show hostnames \
#       "$SLURM_NODELIST" | head -n 1) bash generate_latent.sh'             # the same under SLURM
#
# CONFIG: settings. GPUS: which GPUs, one process each. NGPU: how many processes. PORT: torchrun's, default 29500.
set -euo pipefail
source "$(dirname "$0")/utils/env.sh"
use_environment
CONFIG=${CONFIG:-configs/generate_latent.yaml}
[ -n "${GPUS:-}" ] && export GPU=$GPUS
echo "latent corpus: $CONFIG $*"
launch_torchrun generate_latent.py "$CONFIG" "$@"

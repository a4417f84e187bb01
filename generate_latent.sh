#!/usr/bin/env bash
# Generate a corpus of latents for the retrieval encoder; interrupted, it goes on where it stopped.
#
#   bash generate_latent.sh                                               # configs/generate_latent.yaml, all GPUs
#   bash generate_latent.sh configs/tinyworld_generate_latent.yaml        # a laptop is enough
#   GPU=0,1,2,3 bash generate_latent.sh sample_ratio=0.05                 # any setting as key=value
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash generate_latent.sh        # on each of several machines
#   srun --nodes=2 --ntasks-per-node=1 bash -c 'NNODES=2 NODE_RANK=$SLURM_NODEID MASTER_ADDR=$(scontrol show hostnames \
#       "$SLURM_NODELIST" | head -n 1) bash generate_latent.sh'             # the same under SLURM
#
# GPU: which GPUs, one process each. NGPU: how many processes. PORT: the first machine's, default 29500.
# GPUS_PER_VIDEO: how many of them make one video together (default 1).
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
choose_config configs/generate_latent.yaml "$@"
use_environment
echo "latent corpus: $config ${settings[*]}"
launch generate_latent "$config" "${settings[@]}"

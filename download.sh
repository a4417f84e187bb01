#!/usr/bin/env bash
# Download the weights, prompts and sample latents that a backbone needs. A cut download goes on where it stopped.
#
#   bash download.sh causal_forcing                  # text encoder and VAE are 12 GB of it
#   bash download.sh corpus                          # what generate_latent.sh reads
#   bash download.sh samples                         # a few latents for train_ae_delta.sh data_dir=toydatasets
#   bash download.sh all --check                     # what is there, and is it whole? Needs no network
#   HF_ENDPOINT=https://hub.example bash download.sh longlive --revision v1.0
#
# HF_ENDPOINT, HF_TOKEN and the other HF_* variables have the meaning that huggingface_hub gives them.
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
use_environment
cd "$ROOT"
exec python download.py "$@"

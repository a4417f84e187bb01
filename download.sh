#!/usr/bin/env bash
# Download the weights, prompts and sample latents that a backbone needs; a cut download goes on where it stopped.
#
#   bash download.sh causal_forcing                  # text encoder and VAE are 12 GB of it
#   bash download.sh all --check                     # what is there, and is it whole? (offline)
#   HF_ENDPOINT=https://hub.example bash download.sh longlive --revision v1.0
#
# HF_ENDPOINT, HF_TOKEN and the other HF_* variables have the meaning that huggingface_hub gives them.
set -euo pipefail
source "$(dirname "$0")/utils/env.sh"
use_environment
python -m utils.download "$@"

#!/usr/bin/env bash
# Generate videos with a backbone and a way to assemble its context; interrupted, it goes on where it stopped.
#
#   bash inference.sh tinyworld latentmem                       # a laptop is enough
#   bash inference.sh tinyworld native prompt="..."             # any setting as key=value
#   GPU=0,1 bash inference.sh causal_forcing latentmem num_output_frames=240 seed=7
#
# GPU: which GPUs, one process each (default: all; none: one CPU process).
# GPUS_PER_VIDEO: how many of them make one video together (default 1).
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"

python=$(find_python) || exit 2
run=$(PYTHONPATH=$ROOT "$python" -m pipeline.backbones run "$@") || exit 2
echo "$1 $2: ${run//$'\n'/ } ${*:3}"
shift 2
use_environment
settings=()
while read -r setting; do
    settings+=("$setting")
done <<<"$run"
launch inference "${settings[@]}" "$@"

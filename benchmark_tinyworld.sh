#!/usr/bin/env bash
# Compare context policies and selection rules on tinyworld, whose truth is known; interrupted, it goes on where it stopped.
#
#   bash benchmark_tinyworld.sh                           # the rows of configs/tinyworld_benchmark.yaml
#   bash benchmark_tinyworld.sh subset=true               # 16 prompts, one sample each: minutes
#   bash benchmark_tinyworld.sh only=[native,latentmem] prompts=8 folder=runs/tinyworld/look
#   NGPU=8 bash benchmark_tinyworld.sh                    # eight processes
#
# GPU: which GPUs, one process each. NGPU: how many processes (default without a GPU: one per CPU core, at most 4).
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
use_environment
if [ -z "${GPU:-}${GPUS:-}${NGPU:-}" ] && ! command -v nvidia-smi >/dev/null; then
    cores=$(nproc 2>/dev/null || sysctl -n hw.ncpu)
    NGPU=$((cores < 4 ? cores : 4))
fi
echo "tinyworld's benchmark: configs/tinyworld_benchmark.yaml $*"
launch tinyworld.benchmark "$@"

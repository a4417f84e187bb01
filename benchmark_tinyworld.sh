#!/usr/bin/env bash
# Compare context policies and selection rules on tinyworld, whose truth is known; interrupted, it goes on where it stopped.
#
#   bash benchmark_tinyworld.sh                           # the rows of configs/tinyworld_benchmark.yaml
#   bash benchmark_tinyworld.sh subset=true               # 16 prompts, one sample each: minutes
#   bash benchmark_tinyworld.sh only=[native,latentmem] prompts=8 folder=runs/tinyworld/look
#   NGPU=8 bash benchmark_tinyworld.sh                    # eight processes
#
# NGPU: how many processes (default: one per GPU; without any, one per CPU core, at most 4). GPU, PORT: as in inference.sh.
set -euo pipefail
source "$(dirname "$0")/utils/env.sh"
use_environment
if ! command -v nvidia-smi >/dev/null && [ -z "${NGPU:-}" ]; then
    cores=$(python -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
    export NGPU=$((cores < 4 ? cores : 4))
fi
echo "tinyworld's benchmark: configs/tinyworld_benchmark.yaml $*"
launch_torchrun -m tinyworld.benchmark "$@"

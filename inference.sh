#!/usr/bin/env bash
# Generate videos with a backbone and a way to assemble its context; interrupted, it goes on where it stopped.
#
#   bash inference.sh tinyworld latentmem                       # a laptop is enough
#   bash inference.sh tinyworld native prompt="..."             # any setting as key=value
#   GPU=0,1 bash inference.sh causal_forcing latentmem num_output_frames=240 seed=7
#
# GPU: which GPUs, one process each (default: all; none: one CPU process).
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"

backbones="causal_forcing self_forcing longlive tinyworld"
methods="native latentmem"
backbone=${1:-} method=${2:-}
if [[ " $backbones " != *" $backbone "* || -z $backbone || " $methods " != *" $method "* || -z $method ]]; then
    {
        echo "usage: bash inference.sh BACKBONE METHOD [key=value ...]"
        echo "BACKBONE: ${backbones// / | }"
        echo "METHOD:   ${methods// / | }"
    } >&2
    exit 2
fi
shift 2

use_environment
echo "$backbone $method: configs/${backbone}_$method.yaml $*"
launch inference "$ROOT/configs/${backbone}_$method.yaml" "$@"

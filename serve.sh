#!/usr/bin/env bash
# Watch and steer videos in the browser while they are made; prints the address to open.
#
#   bash serve.sh tinyworld latentmem                        # a laptop is enough
#   bash serve.sh causal_forcing latentmem port=8000         # any setting of a run as key=value, for all takes
#   bash serve.sh tinyworld latentmem host=0.0.0.0           # for other machines too: the address holds a token
#
# GPU: which GPU (default: the first).
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"

python=$(find_python) || exit 2
run=$(PYTHONPATH=$ROOT "$python" -m pipeline.backbones run "$@" 2> >(sed 's/inference\.sh/serve.sh/' >&2)) || exit 2
echo "$1 $2: ${run//$'\n'/ } ${*:3}"
use_environment
NGPU=1 launch serve.server "$@"

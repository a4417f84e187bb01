#!/usr/bin/env bash
# Measure and compare folders of videos; writes report.html, report.json and a table.
#
#   bash evaluate.sh videos/tinyworld/native videos/tinyworld/latentmem
#   bash evaluate.sh before=runs/a after=runs/b --out runs/report --embed
#   bash evaluate.sh a.mp4 b.mp4                                    # two files
#   bash evaluate.sh vbench --help                                  # VBench-Long and the paper's table
set -euo pipefail

here=$PWD
source "$(dirname "$0")/utils/env.sh"
use_environment
module=evaluation
if [ "${1:-}" = vbench ]; then
    module=evaluation.vbench
    shift
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 # not what lies in the caller's folder
cd "$here"
exec python -m "$module" "$@"

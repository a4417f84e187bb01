#!/usr/bin/env bash
# Measure and compare folders of videos; writes report.html, report.json and a table.
#
#   bash evaluate.sh videos/tinyworld/native videos/tinyworld/latentmem
#   bash evaluate.sh before=runs/a after=runs/b --out runs/report --embed
#   bash evaluate.sh a.mp4 b.mp4                                    # two files
#   bash evaluate.sh vbench --help                                  # VBench-Long and the paper's table
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
use_environment
module=evaluation
if [ "${1:-}" = vbench ]; then
    module=evaluation.vbench
    shift
fi
exec python -m "$module" "$@"

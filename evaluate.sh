#!/usr/bin/env bash
# Measure and compare folders of videos; writes report.html, report.json and a table.
#
#   bash evaluate.sh videos/tinyworld/native videos/tinyworld/latentmem
#   bash evaluate.sh before=runs/a after=runs/b --out runs/report --embed
#   bash evaluate.sh a.mp4 b.mp4                                    # two files
#   bash evaluate.sh vbench --help                                  # VBench-Long and the paper's table
#   bash evaluate.sh futures --help                                 # futures of one past
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
use_environment
module=evaluation
case "${1:-}" in vbench | futures)
    module=evaluation.$1
    shift
    ;;
esac
exec python -m "$module" "$@"

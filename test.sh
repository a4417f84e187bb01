#!/usr/bin/env bash
# Lint and test: bash test.sh [pytest options]
set -euo pipefail
source "$(dirname "$(readlink -f "$0")")/utils/env.sh"
use_environment requirements-dev.txt
cd "$ROOT"
ruff check .
ruff format --check .
exec python -m pytest "$@"

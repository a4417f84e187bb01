#!/usr/bin/env bash
# Lint and test: bash test.sh [pytest options]
set -euo pipefail
source "$(dirname "$0")/utils/env.sh"
use_environment requirements-dev.txt
ruff check .
ruff format --check .
python -m pytest "$@"

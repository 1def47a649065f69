#!/usr/bin/env bash
# Every check and every test. Further arguments go to pytest: scripts/test.sh -m "not slow" for a quick run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

ruff check .
ruff format --check .
mypy
lint-imports
factory validate

# Workers would share the cores with torch's own threads, so each has one; the real teacher has all cores to itself.
if [ $# -gt 0 ]; then
  exec pytest "$@"
fi
OMP_NUM_THREADS=1 pytest -m "not slow" -n 2
pytest -m slow --durations=5

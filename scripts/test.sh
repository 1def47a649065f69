#!/usr/bin/env bash
# Every check and every test but the big ones, which --all adds (real models in every format, minutes each).
# Other arguments go to pytest: scripts/test.sh -m "not slow" for a quick run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

ruff check .
ruff format --check .
mypy
lint-imports
factory validate

# Workers would share the cores with torch's own threads, so each has one; the real teacher has all cores to itself.
slow="slow and not big"
if [ "${1:-}" = --all ]; then
  slow=slow
elif [ $# -gt 0 ]; then
  exec pytest "$@"
fi
OMP_NUM_THREADS=1 pytest -m "not slow" -n 2
pytest -m "$slow" --durations=5

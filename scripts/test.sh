#!/usr/bin/env bash
# All checks and all tests but the big ones (real models in every format, minutes each), which --all adds.
# Other arguments go to pytest: scripts/test.sh -m "not slow" is a quick run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/install.sh"

ruff check .
ruff format --check .
mypy
lint-imports
factory validate
python scripts/supply_chain.py --audit  # licences; known vulnerabilities, where the package index can be asked

# Two workers with one torch thread each; tests with the real teacher run alone, on all cores.
slow="slow and not big"
if [ "${1:-}" = --all ]; then
  slow=slow
elif [ $# -gt 0 ]; then
  exec pytest "$@"
fi
OMP_NUM_THREADS=1 pytest -m "not slow" -n 2
pytest -m "$slow" --durations=5

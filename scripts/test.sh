#!/usr/bin/env bash
# Lint and all fast tests, in an environment that is made where it is missing.
#   scripts/test.sh                  everything that is fast
#   scripts/test.sh -m slow          the slow tests
#   scripts/test.sh tests/test_data.py -k digits
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

"$PY" -m ruff check .
"$PY" -m ruff format --check --quiet .
# One process per core with one thread each: thread pools side by side would fight.
OMP_NUM_THREADS=1 exec "$PY" -m pytest -n "${VI_LAB_TEST_PROCESSES:-auto}" -m "not slow" "$@"

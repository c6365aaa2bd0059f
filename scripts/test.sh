#!/usr/bin/env bash
# Lint, types and all fast tests, in an environment that is made where it is missing.
#   scripts/test.sh                  everything that is fast
#   scripts/test.sh -m slow          the slow tests
#   scripts/test.sh tests/data -k digits
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

check() {
    "$PY" -m "$@" || { echo "scripts/test.sh: $1 found something; mend it and start again" >&2; exit 1; }
}
if [ -z "${VI_LAB_TESTS_ONLY:-}" ]; then # of .ci/run, which has done this by then
    check ruff check .
    check ruff format --check --quiet .
    check mypy
    check pyright --pythonpath "$PY"
fi
# One process per core with one thread each: thread pools side by side would fight.
OMP_NUM_THREADS=1 exec "$PY" -m pytest -n "${VI_LAB_TEST_PROCESSES:-auto}" -m "not slow" "$@"

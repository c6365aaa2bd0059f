#!/usr/bin/env bash
# Builds the documentation into site/, strictly: a warning or a broken link ends it.
#   scripts/docs.sh                  then open site/index.html; all but the search works without a server
#   scripts/docs.sh --site-dir DIR   further arguments go to `mkdocs build`
#   scripts/docs.sh serve            builds anew at each change, at http://127.0.0.1:8000
case "${1:-}" in -h | --help) sed -n '2,5s/^# \?//p' "$0"; exit 0 ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# What the extra `docs` brings, looked up without importing anything.
lacks_docs() {
    (cd / && "$PY" -c '
import sys
from importlib import util
sys.exit(all(util.find_spec(name) for name in "mkdocs material mkdocstrings mkdocstrings_handlers latex2mathml".split()))
')
}

if lacks_docs; then
    echo "installing the documentation's tools into $(dirname "$(dirname "$PY")")"
    "$PY" -m uv --version >/dev/null 2>&1 || "$PY" -m pip install --quiet uv
    "$PY" -m uv pip install --quiet --python "$PY" -e ".[docs]"
fi

export NO_MKDOCS_2_WARNING=1 # about a version that the extra excludes
if [ "${1:-}" = serve ]; then
    shift
    exec "$PY" -m mkdocs serve "$@"
fi
exec "$PY" -m mkdocs build --strict --clean --quiet "$@"

# Sourced by the other scripts: sets PY to a Python that has vi_lab, its dependencies and its development tools.
# An active environment (venv or conda) is used and completed; otherwise .venv is made in the checkout.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

if [ -n "${VIRTUAL_ENV:-}" ] || [ -n "${CONDA_PREFIX:-}" ]; then
    PY=$(command -v python)
else
    PY=$ROOT/.venv/bin/python
    if ! "$PY" -m pip --version >/dev/null 2>&1; then
        base=$(command -v python3 || command -v python) || { echo "Python 3.10 or newer is needed" >&2; exit 1; }
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
            { echo "Python 3.10 or newer is needed; $base is $("$base" --version 2>&1)" >&2; exit 1; }
        echo "making .venv with $base"
        "$base" -m venv .venv
    fi
fi

# What of the dependencies in pyproject.toml is missing? Looked up without importing anything; from /, so that the
# checkout itself does not count.
missing() {
    (cd / && "$PY" - "$ROOT" <<'PYTHON'
import re
import sys
from importlib import metadata, util
from pathlib import Path

text = Path(sys.argv[1], "pyproject.toml").read_text(encoding="utf-8")
tables = [re.search(rf"^{name} = \[$(.*?)^\]$", text, re.MULTILINE | re.DOTALL)[1] for name in ("dependencies", "dev")]
lacking = []
# without those that another version of Python needs: "NAME>=1; python_version < ..."
for name in re.findall(r"^ *\"([\w.-]+)[^;\"]*\"", "\n".join(tables), re.MULTILINE):
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        lacking.append(name)
spec = util.find_spec("vi_lab")
if spec is None or not spec.origin.startswith(sys.argv[1]):
    lacking.append("vi_lab")
print(" ".join(lacking))
PYTHON
    )
}

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "installing into $(dirname "$(dirname "$PY")"): $lacking"
    # uv takes torch and torchvision from one source, so that they fit together, and is many times faster than pip.
    "$PY" -m uv --version >/dev/null 2>&1 || "$PY" -m pip install --quiet uv
    "$PY" -m uv pip install --quiet --python "$PY" --compile-bytecode -e ".[dev]"
    lacking=$(missing)
    [ -z "$lacking" ] || { echo "could not install: $lacking" >&2; exit 1; }
fi

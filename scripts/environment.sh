# Sourced by the other scripts: goes to the repository's root and makes the virtual environment with all that the checks
# need, once. Needs Python 3.11 or later.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"
bin="$venv/bin"
export HF_HUB_OFFLINE=1

step() { printf '\n== %s\n' "$1"; }

if [ ! -e "$venv/.installed-dev" ] || [ pyproject.toml -nt "$venv/.installed-dev" ] || [ constraints.txt -nt "$venv/.installed-dev" ]; then
    step "environment"
    "$python" -m venv "$venv"
    # torch first, from the constraints: the newest release may be another build, of several gigabytes.
    "$bin/python" -m pip install --quiet --constraint constraints.txt torch
    "$bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
    touch "$venv/.installed-dev" "$venv/.installed"
fi

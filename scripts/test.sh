#!/usr/bin/env bash
# All checks, in a virtual environment of their own: lint, format, types, import contracts, tests with coverage, and a
# wheel built and installed in a clean environment with the smoke demo run from it. Needs Python 3.11 or later.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
venv="${VENV:-.venv}"

if [ ! -e "$venv/.installed-dev" ] || [ pyproject.toml -nt "$venv/.installed-dev" ] || [ constraints.txt -nt "$venv/.installed-dev" ]; then
    "$python" -m venv "$venv"
    # torch first, from the constraints: the newest release may be another build, of several gigabytes.
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt torch
    "$venv/bin/python" -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
    touch "$venv/.installed-dev" "$venv/.installed"
fi
bin="$venv/bin"
export HF_HUB_OFFLINE=1

step() { printf '\n== %s\n' "$1"; }

step "lint"
"$bin/ruff" check .
step "format"
"$bin/ruff" format --check .
step "types"
"$bin/mypy"
step "import contracts"
"$bin/lint-imports"
step "wheel, clean environment, smoke demo"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$bin/python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint constraints.txt torch
"$work/venv/bin/python" -m pip install --quiet --constraint constraints.txt "$work"/dist/*.whl
(
    cd "$work"
    export HF_HOME="$work/huggingface"
    venv/bin/cocomix --help >/dev/null
    venv/bin/cocomix demo --size smoke --output "$work/demo"
    test -s "$work/demo/report.html"
    test -s "$work/demo/summary.json"
)
step "tests"
# A process a core, each with one thread; a file's tests stay together, and with them what they share.
OMP_NUM_THREADS=1 "$bin/pytest" --numprocesses logical --dist loadfile --cov --cov-report=term "$@"

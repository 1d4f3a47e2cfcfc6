#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and runs the smoke demo from there.
source "$(dirname "$0")/environment.sh"

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

step "wheel"
"$bin/python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
step "empty environment"
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --constraint constraints.txt torch
"$work/venv/bin/python" -m pip install --quiet --constraint constraints.txt "$work"/dist/*.whl
step "smoke demo"
cd "$work"
export HF_HOME="$work/huggingface"
venv/bin/cocomix --help >/dev/null
venv/bin/cocomix run demo-smoke --output demo
test -s demo/report.html
test -s demo/summary.json

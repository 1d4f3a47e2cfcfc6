#!/usr/bin/env bash
# Lint, format, types, import contracts, docs and tests. What is given goes to pytest: -m "" adds the tests marked slow.
source "$(dirname "$0")/environment.sh"

step "lint"
"$bin/ruff" check .
step "format"
"$bin/ruff" format --check .
step "types"
"$bin/mypy"
step "import contracts"
"$bin/lint-imports"
bash scripts/docs.sh
step "tests"
# A process a core, each with one thread.
OMP_NUM_THREADS=1 "$bin/pytest" --numprocesses logical --dist worksteal "$@"

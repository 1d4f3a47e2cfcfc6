#!/usr/bin/env bash
# Builds the pages into build/docs; a warning, such as a link that points nowhere, is an error.
source "$(dirname "$0")/environment.sh"

step "docs"
"$bin/sphinx-build" --fail-on-warning --keep-going --quiet --builder html docs build/docs
echo "build/docs/index.html"

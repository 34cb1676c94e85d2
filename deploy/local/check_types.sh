#!/bin/bash
# mypy --strict over all sources at once, then over each member's tests: test modules of different members have the
# same names, and mypy knows one module of a name.
set -euo pipefail

sources=(libs/*/src services/*/src simulators/src deploy/local conftest.py)
for more in bench tests/integration; do
  compgen -G "$more/*.py" >/dev/null && sources+=("$more")
done
MYPYPATH=tests/integration .venv/bin/mypy "${sources[@]}"

for tests in libs/*/tests services/*/tests simulators/tests; do
  if compgen -G "$tests/*.py" >/dev/null; then
    MYPYPATH="$tests" .venv/bin/mypy "$tests"
  fi
done

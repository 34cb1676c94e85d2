#!/bin/bash
# mypy --strict over all sources at once, then over each folder of tests: test modules of different folders have the
# same names, and mypy knows one module of a name. What several folders share is in tests/shared.
set -euo pipefail

sources=(libs/*/src services/*/src simulators/src deploy/local deploy/docker deploy/k8s deploy/checks conftest.py)
if compgen -G "bench/*.py" >/dev/null; then
  sources+=(bench)
fi
# The benchmarks drive the product with the customers of the integration tests, and figures with the shared log.
MYPYPATH=tests/integration:tests/shared:services/sync-gateway/tests:services/notifier/tests .venv/bin/mypy "${sources[@]}"

status=0
for tests in libs/*/tests services/*/tests simulators/tests tests/shared tests/deploy tests/guards tests/integration; do
  if compgen -G "$tests/*.py" >/dev/null; then
    echo "$tests"
    MYPYPATH="$tests:tests/shared:clients" .venv/bin/mypy "$tests" || status=1
  fi
done
exit $status

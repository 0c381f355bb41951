#!/usr/bin/env bash
# Sets up the environment and runs every test; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
"${VENV:-.venv}/bin/python" -m pytest "$@"

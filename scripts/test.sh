#!/usr/bin/env bash
# Sets up the environment and runs every test; arguments go to pytest (-n 0: in one process).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
# Two processes of one thread each. The tests of a file stay together: they share what they train.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export PYTHONDONTWRITEBYTECODE=  # or each of some hundred commands compiles all files again
"${VENV:-.venv}/bin/python" -m pytest --numprocesses 2 --dist loadfile "$@"

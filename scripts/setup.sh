#!/usr/bin/env bash
# Makes the Python environment the other scripts use. Safe to run again: it goes on where it was.
#   PYTHON  interpreter to build on  (default: that of an environment that is there, or python3)
#   VENV    environment to make      (default: .venv)
#   SETUP   skip: use VENV as it is
#   TORCH   pip requirement of torch (default: the newest that this project was tested with)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
python=${PYTHON:-$venv/bin/python}
[ -x "$python" ] || python=python3
torch=${TORCH:-torch>=2.4,<=2.13.0}

[ "${SETUP:-}" = skip ] && exit 0
wanted="$("$python" --version) $torch $(cat setup.py scripts/setup.sh | cksum)"
if [ "$(cat "$venv/ready" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

echo "== Setting up $venv with $("$python" --version): a few minutes the first time"
"$python" -m venv "$venv"
if [ "$("$venv/bin/python" --version)" != "$("$python" --version)" ]; then
    echo "$venv is of $("$venv/bin/python" --version): remove it or give another VENV" >&2
    exit 1
fi
pip() { "$venv/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }

if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    # fairseq-fixed compiles against torch: an isolated build would download a second one.
    isolation=--no-build-isolation
else
    # pip 24.1 and later refuse the metadata of fairseq 0.12.2's omegaconf (fairseq issue #5511).
    pip install "pip<24.1"
    isolation=
fi
echo "   torch"
pip install "$torch" numpy cython setuptools wheel
echo "   fairseq and the rest"
pip install $isolation --editable ".[test,cpu]"
"$venv/bin/python" -c 'import pkm_fairseq'
echo "$wanted" > "$venv/ready"
echo "== $venv is ready"

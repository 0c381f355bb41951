#!/usr/bin/env bash
# Checks the GPU kernels on a machine with a GPU, torch and triton, but perhaps no fairseq and no
# network: see gpu_check.py, whose options it takes.
#   PYTHON  interpreter that has torch and triton  (default: python3)
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"

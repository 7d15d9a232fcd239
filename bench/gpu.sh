#!/usr/bin/env bash
# Everything that a machine with a GPU should run, in ten minutes: python -m bench.gpu says what. Needs torch, triton,
# transformers and pytest; Liger takes part where it can be imported. Without a GPU it runs small, as a rehearsal.
#
#   bench/gpu.sh [FOLDER]        python: $PYTHON, or .venv's, or python3
#
# What was compiled beforehand (python -m bench.gpu.precompile) is taken from $TRITON_CACHE_DIR.
set -euo pipefail
mkdir -p "${1:-.benchmarks/gpu}"
folder=$(cd "${1:-.benchmarks/gpu}" && pwd)
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
unset TRITON_INTERPRET
# One configuration a kernel: by default Liger tries 32 of each, for minutes.
export LIGER_FUSED_MOE_AUTOTUNE=${LIGER_FUSED_MOE_AUTOTUNE:-0}
exec "$PYTHON" -m bench.gpu "$folder"

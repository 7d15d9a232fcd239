#!/usr/bin/env bash
# Everything that a machine with a GPU should run, in under 9 minutes: the kernels' tests on the device, the resources
# of the compiled kernels, the quick benchmark. Needs torch, triton, transformers and pytest; Liger takes part where it
# can be imported. Without a GPU it runs reduced, to show that it works.
#
#   bench/gpu.sh [RESULT.json]        python: $PYTHON, or .venv's, or python3
set -uo pipefail
result=${1:-.benchmarks/gpu.json}
case $result in /*) ;; *) result=$PWD/$result ;; esac
cd "$(dirname "$0")/.."
mkdir -p "$(dirname "$result")"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
unset TRITON_INTERPRET
# One configuration a kernel: by default Liger tries 32 of each, for minutes.
export LIGER_FUSED_MOE_AUTOTUNE=${LIGER_FUSED_MOE_AUTOTUNE:-0}
log=${result%.json}.log
: >"$log"
failed=()

report() { # report NAME STATUS SECONDS
    [ "$2" -eq 0 ] || failed+=("$1")
    [ "$2" -ne 124 ] || echo "$1: stopped by its time limit" | tee -a "$log"
    echo "== $1: exit status $2, $3 s" | tee -a "$log"
}

# Compiling takes most of the tests' time: one process a selection, side by side.
test_kernels() { # test_kernels SECONDS SELECTION...
    local limit=$1 start=$SECONDS folder selections=("${@:2}") processes=() status number
    folder=$(mktemp -d)
    for number in "${!selections[@]}"; do
        timeout --kill-after=10 "$limit" "$PYTHON" -m pytest "${files[@]}" -m "not slow" -p no:cacheprovider \
            -k "${selections[number]}" >"$folder/$number" 2>&1 &
        processes+=($!)
    done
    for number in "${!selections[@]}"; do
        wait "${processes[number]}"
        status=$?
        tail -n 40 "$folder/$number" | tee -a "$log"
        report "tests ${selections[number]}" "$status" $((SECONDS - start))
    done
    rm -r "$folder"
}

measure() { # measure SECONDS ARGUMENT...: cases that do not fit are left out; what was measured is kept
    local start=$SECONDS
    timeout --kill-after=10 $(($1 + 60)) "$PYTHON" -m pytest bench/ --benchmark --benchmark-quick -p no:cacheprovider \
        --benchmark-seconds "$1" --benchmark-output "$result" "${@:2}" 2>&1 | tee -a "$log"
    report benchmark "${PIPESTATUS[0]}" $((SECONDS - start))
}

if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    # What is not about the device is left to the machines without one.
    files=(tests/kernels)
    for name in name import ddp upcycle upcycle_masks validation huggingface huggingface_families huggingface_nomic; do
        files+=("--ignore=tests/kernels/test_$name.py")
    done
    test_kernels 220 "triton and float32" "triton and bfloat16" "triton and float16 and not bfloat16" \
        "not float32 and not float16 and not eager and not native"
    measure 240
else
    echo "no GPU here: a part of the tests and of the cases"
    files=(tests/kernels/test_layers.py)
    test_kernels 120 "eager and float32" "eager and bfloat16"
    measure 120 -k "SBMoE-T64 or combine"
fi

[ -s "$result" ] && echo "results: $result, log: $log"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }

#!/usr/bin/env bash
# All checks of the ops on a GPU machine with Python >= 3.11, torch and triton; SGLang is not needed.
#   OUT=folder tests/gpu/run_ops.sh [tests] [replay] [bench] [sanitizer]     (default: all four)
# Each check leaves its log in $OUT; the exit status is 1 when one of them failed.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-out/gpu}
PYTHON=${PYTHON:-python3}
JOBS=${JOBS:-8}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
"$PYTHON" scripts/link_tree.py build/tree
export PYTHONPATH=$PWD/build/tree${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
failed=()

check() {
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$OUT/$name.log" 2>&1; then echo "$name: ok, $((SECONDS - start)) s"; else
        echo "$name: FAILED, $((SECONDS - start)) s"
        failed+=("$name")
    fi
    tail -n 30 "$OUT/$name.log"
}

# The race checker follows one kernel at a time through shared memory, the memory checker every access; both want
# exact allocations instead of the caching allocator's.
sanitize() {
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 "$PYTHON" tests/gpu/touch_ops.py
}

for step in "${@:-tests replay bench sanitizer}"; do
    for name in $step; do
        case $name in
        tests) check tests "$PYTHON" -m pytest -q -o addopts="--import-mode=importlib" -n "$JOBS" \
            --junitxml="$OUT/ops.xml" tests/ops ;;
        replay) check replay "$PYTHON" -m star_kv_sglang.tools.cli.replay --device cuda tests/golden/*.npz ;;
        bench) check bench "$PYTHON" -m star_kv_sglang.tools.cli.bench_ops --tests "$OUT/ops.xml" --csv "$OUT/ops.csv" ;;
        sanitizer)
            check memcheck sanitize memcheck
            check racecheck sanitize racecheck
            ;;
        *)
            echo "unknown check $name; choose of: tests replay bench sanitizer" >&2
            exit 2
            ;;
        esac
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi

#!/usr/bin/env bash
# All checks of whole engines on a GPU machine where SGLang is importable, at the same time: none of them is timed.
#   OUT=folder LIMIT=seconds tests/gpu/run_engine.sh [tests] [parity] [load] [memcheck]     (default: all four)
# Each check leaves its log and its results in $OUT; the exit status is 1 when one of them failed or ran out of time.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-out/gpu}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-3600}
GPU_JOBS=${GPU_JOBS:-8}
PARITY_JOBS=${PARITY_JOBS:-4}
LOAD_SECONDS=${LOAD_SECONDS:-$((LIMIT * 2 / 3))}
ALONE_SECONDS=${ALONE_SECONDS:-40}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
"$PYTHON" scripts/link_tree.py build/tree
# Without a limit every process takes all processors for its float32 references, and all of them wait.
export OMP_NUM_THREADS=2 PYTHONPATH=$PWD/build/tree${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
names=() pids=()

start() {
    local name=$1
    shift
    timeout -s INT -k 20 "$LIMIT" "$@" >"$OUT/$name.log" 2>&1 &
    names+=("$name") pids+=($!)
}

load() {
    start "load_$1" "$PYTHON" tests/gpu/mixed_load.py --seconds "$LOAD_SECONDS" --alone-seconds "$ALONE_SECONDS" \
        --out "$OUT/load_$1.json" "${@:2}"
}

# The memory checker wants exact allocations instead of the caching allocator's. It reports accesses; calls of the CUDA
# API that libraries make to see whether they fail are none.
memcheck() {
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 start memcheck compute-sanitizer --tool memcheck --target-processes all \
        --report-api-errors no --error-exitcode 9 "$PYTHON" tests/gpu/mixed_load.py --eager --requests 40 --clients 4 \
        --compared 4 --longest 1200 --burst 30 --pool 8192 --seconds 120 --alone-seconds 20 --out "$OUT/memcheck.json"
}

for step in "${@:-tests parity load memcheck}"; do
    for name in $step; do
        case $name in
        tests)
            RESULTS_CSV=$OUT/test_gpu.csv start tests "$PYTHON" -m pytest -m gpu -n "$GPU_JOBS" --dist loadgroup
            ;;
        parity)
            start parity "$PYTHON" tests/gpu/parity.py --out "$OUT/parity" --jobs "$PARITY_JOBS" \
                --seconds "$((LIMIT - 90))" --only "${PARITY_ONLY:-}"
            ;;
        load)
            load p1 --requests 2000
            load p16 --requests 2000 --page-size 16
            load stock --requests 700 --policy stock
            ;;
        memcheck) memcheck ;;
        *)
            echo "unknown check $name; choose of: tests parity load memcheck" >&2
            exit 2
            ;;
        esac
    done
done
failed=()
for index in "${!pids[@]}"; do
    if wait "${pids[$index]}"; then echo "${names[$index]}: ok"; else
        echo "${names[$index]}: status $?"
        failed+=("${names[$index]}")
    fi
done
for name in "${names[@]}"; do
    printf '\n== %s\n' "$name"
    tail -n 25 "$OUT/$name.log" | cut -c1-400
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed or out of time: ${failed[*]}"
    exit 1
fi

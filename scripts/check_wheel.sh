#!/usr/bin/env bash
# What `pip install` of the bare wheel beside SGLang gives, in a fresh environment outside of the checkout: nothing but
# our package is added, the tools say what they need, and on a CPU `star-kv serve` serves a pruned conversation.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
uv="$root/.venv/bin/uv"
if [ -z "${UV_CACHE_DIR:-}" ] && [ -d "$root/.uv-cache" ]; then export UV_CACHE_DIR=$root/.uv-cache; fi

"$uv" venv --quiet --python "$root/.venv/bin/python" "$folder/venv"
python=$folder/venv/bin/python
sglang=$(sed -n 's/^    "\(sglang==[^"]*\)",$/\1/p' pyproject.toml)
# Compiled now: an engine imports thousands of files in three processes.
"$uv" pip install --quiet --compile-bytecode --python "$python" "$sglang"
"$uv" pip freeze --python "$python" >"$folder/before"
"$uv" pip install --quiet --compile-bytecode --python "$python" dist/star_kv_sglang-*.whl
"$uv" pip freeze --python "$python" >"$folder/after"
added=$(diff "$folder/before" "$folder/after" | grep '^[<>]' | grep -v '^> star-kv-sglang' || true)
if [ -n "$added" ]; then
    printf 'the wheel brings or changes more than itself:\n%s\n' "$added" >&2
    exit 1
fi
printf 'beside %s the wheel brings nothing but itself\n' "$sglang"

cd "$folder"
said=$(env -u PYTHONPATH "$folder/venv/bin/star-kv" bench 2>&1 || true)
printf 'star-kv bench: %s\n' "$said"
[[ $said == *"pip install 'star-kv-sglang[tools]'"* && $(wc -l <<<"$said") -eq 1 ]] || exit 1
cp -r "$root/examples/tinygui/model" "$root/tests/examples/data/samples" "$root/tests/gpu/entry_points.py" "$folder"
env -u PYTHONPATH "$python" entry_points.py --cpu --model "$folder/model" --samples "$folder/samples" --out "$folder" || {
    tail -n 40 "$folder"/entry_*.log
    exit 1
}

#!/usr/bin/env bash
# Install everything into .venv of this project: no root, nothing outside of the project's folder.
# A second call without a change of the requirements returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=$(cat pyproject.toml setup.py scripts/install.sh | sha256sum | cut -d' ' -f1)
stamp=.venv/.installed
if [ -x .venv/bin/star-kv ] && [ "$(cat "$stamp" 2>/dev/null)" = "$requirements" ]; then
    exit 0
fi

fail() {
    printf 'make install: %s\n' "$1" >&2
    exit 1
}

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.12 python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || fail "needs Python 3.11 or 3.12, and found $(python3 --version 2>/dev/null || echo none). Install one (Debian: apt install python3.11 python3.11-venv), or name it: make install PYTHON=/path/to/python3.11"

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if ! .venv/bin/python -c '' 2>/dev/null; then
    "$python" -c 'import venv, ensurepip' 2>/dev/null || fail "Python $version has no venv with pip. Debian and Ubuntu keep it in a package of its own: apt install python$version-venv"
    printf 'Creating .venv with Python %s\n' "$version"
    "$python" -m venv .venv
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv

# uv's cache stays in the project as well, hard-linked with .venv, unless there is one already.
if [ -z "${UV_CACHE_DIR:-}" ] && [ ! -d "${XDG_CACHE_HOME:-$HOME/.cache}/uv" ]; then
    export UV_CACHE_DIR=$PWD/.uv-cache
fi
free_gb=$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9)
[ -d .venv/lib/python"$version"/site-packages/torch ] || [ "$free_gb" -ge 13 ] || fail "needs about 12 GB, and this disk has $free_gb GB left"

printf 'Installing SGLang 0.5.23, torch and the rest (about 11 GB)\n'
start=$SECONDS
# Compiled now, because an engine imports thousands of files in three processes.
.venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode --editable '.[dev]'
echo "$requirements" >"$stamp"
printf 'Installed in %d s\n' $((SECONDS - start))

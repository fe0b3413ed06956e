#!/usr/bin/env bash
# Debian's Chromium, for the tests that look at pages and for agents that play in one. Returns at once where there is one.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "needs a Chromium browser, and found none. Install one (Debian: apt install chromium)" >&2
    exit 1
fi
printf 'Installing Chromium\n'
start=$SECONDS
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium fonts-dejavu-core >/dev/null
printf 'Installed in %d s\n' $((SECONDS - start))

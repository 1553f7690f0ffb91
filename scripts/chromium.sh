#!/usr/bin/env bash
# The system tests look at pages in a real browser: install chromium where there is none.
set -euo pipefail

found() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

if found >/dev/null; then exit; fi
command -v apt-get >/dev/null || { echo "chromium: not found, and no apt-get to install it; install it" >&2; exit 1; }
root=()
[[ $EUID == 0 ]] || root=(sudo)
"${root[@]}" apt-get update
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium
found >/dev/null || { echo "chromium: not found after its installation; install it" >&2; exit 1; }

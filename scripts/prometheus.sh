#!/usr/bin/env bash
# The dashboards and the tests of the alerts need prometheus and promtool: install them where there are none.
set -euo pipefail

found() { command -v prometheus && command -v promtool; }

if found >/dev/null; then exit; fi
command -v apt-get >/dev/null || { echo "prometheus: not found, and no apt-get to install it; install it" >&2; exit 1; }
root=()
[[ $EUID == 0 ]] || root=(sudo)
# Debian's package starts a service that listens on every interface; nobody asked for one.
[[ ! -d /run/systemd/system ]] || "${root[@]}" systemctl mask prometheus.service
"${root[@]}" apt-get update
"${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends prometheus
found >/dev/null || { echo "prometheus: not found after its installation; install it" >&2; exit 1; }

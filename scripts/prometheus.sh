#!/usr/bin/env bash
# Debian's Prometheus with promtool, for `make test-metrics`; its own service is left stopped. Needs root.
set -eu -o pipefail
command -v prometheus >/dev/null && command -v promtool >/dev/null && exit 0
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "prometheus.sh: needs root on Debian" >&2; exit 1; }
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
{ timeout 300 apt-get -q update -o DPkg::Lock::Timeout=240 &&
  timeout 900 apt-get -q -y -o DPkg::Lock::Timeout=240 install --no-install-recommends prometheus; } >"$log" 2>&1 ||
  { echo "prometheus.sh: apt-get failed: $(tail -25 "$log")" >&2; exit 1; }
rm -f "$log"
if command -v systemctl >/dev/null; then systemctl disable --now prometheus >/dev/null 2>&1 || true; fi

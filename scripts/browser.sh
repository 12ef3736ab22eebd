#!/usr/bin/env bash
# What the tests of the report need: Debian's Chromium, and axe-core, the accessibility checker, from npm.
#
#   scripts/browser.sh install     Debian's packages chromium and npm (needs root)
#   scripts/browser.sh axe DIR     fetch axe-core into DIR; prints the path of axe.min.js
set -eu -o pipefail
axe_version=4.14.1

die() { echo "browser.sh: $*" >&2; exit 1; }

install() {
  missing=
  command -v chromium >/dev/null || missing="chromium"
  command -v npm >/dev/null || missing="$missing npm"
  [ -n "$missing" ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "install needs root on Debian"
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086
  { timeout 300 apt-get -q update -o DPkg::Lock::Timeout=240 &&
    timeout 900 apt-get -q -y -o DPkg::Lock::Timeout=240 install --no-install-recommends $missing; } >"$log" 2>&1 ||
    die "apt-get failed: $(tail -25 "$log")"
  rm -f "$log"
}

axe() {
  [ -n "${1:-}" ] || die "which directory? (axe DIR)"
  mkdir -p "$1"
  if [ ! -e "$1/axe.min.js" ]; then
    (cd "$1" && npm pack --silent "axe-core@$axe_version" >/dev/null && tar xzf "axe-core-$axe_version.tgz" --strip-components=1)
  fi
  (cd "$1" && echo "$PWD/axe.min.js")
}

case ${1:-} in
  install) install ;;
  axe) axe "${2:-}" ;;
  *) die "usage: browser.sh install | axe DIR" ;;
esac

#!/usr/bin/env bash
# A real S3 server for the tests: Ceph's object gateway on 127.0.0.1, one monitor, one disk (a file), one gateway.
#
#   scripts/s3-server.sh install       Debian's packages (needs root; 61 MB, 30 s)
#   scripts/s3-server.sh up DIR        start, or find running; prints the exports that clients need
#   scripts/s3-server.sh down DIR      stop; what was stored stays and is there again after `up`
#   scripts/s3-server.sh destroy DIR   stop and delete DIR
set -u -o pipefail
umask 022
wait_seconds=${S3_SERVER_WAIT_SECONDS:-90}    # what each single step may take

die() { echo "s3-server.sh: $*" >&2; exit 1; }
say() { echo "s3-server.sh: $*" >&2; }

missing() {   # the first tool that is not installed
  for tool in ceph-mon ceph-osd radosgw radosgw-admin ceph monmaptool curl python3; do
    command -v $tool >/dev/null || { echo $tool; return; }
  done
}

install() {
  [ -n "$(missing)" ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "install needs root on Debian"
  # the packages' own scripts must not start daemons: policy-rc.d is what Debian asks before it does
  local policy=/usr/sbin/policy-rc.d log made= ; log=$(mktemp)
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=1; }
  export DEBIAN_FRONTEND=noninteractive
  { timeout 300 apt-get -q update -o DPkg::Lock::Timeout=240 &&
    timeout 900 apt-get -q -y -o DPkg::Lock::Timeout=240 install --no-install-recommends \
      radosgw ceph-mon ceph-osd ceph-common curl ca-certificates; } >"$log" 2>&1
  local failed=$?
  [ -z "$made" ] || rm -f $policy
  [ $failed = 0 ] || die "apt-get failed with $failed: $(tail -25 "$log")"
  rm -f "$log"
}

enter() {   # enter DIR: what all the other functions work on
  [ -n "${1:-}" ] || die "which directory? (up DIR, down DIR, destroy DIR)"
  mkdir -p "$1" && dir=$(cd "$1" && pwd) || die "cannot enter $1"
  [ ${#dir} -le 80 ] || die "$dir is too long a path for unix sockets (80 characters at most)"
  case $dir in *[[:space:]]*) die "the path must not contain blanks: $dir" ;; esac
  conf=$dir/ceph.conf
  export CEPH_CONF=$conf CEPH_ARGS=
}

configure() {   # once per DIR: its ports and names stay
  # shellcheck disable=SC2046
  set -- $(python3 -c '
import socket
held = [socket.socket() for _ in range(3)]
for s in held: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in held])')
  mkdir -p "$dir"/{mon,osd,run,log,crash,rgw}
  echo "$3" >"$dir/port"
  cat >"$conf" <<EOF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon_host = [v2:127.0.0.1:$1,v1:127.0.0.1:$2]
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# the gateway insists on encrypted monitor traffic by default, which "none" cannot give
ms_mon_client_mode = crc
run_dir = $dir/run
admin_socket = $dir/run/\$name.asok
pid_file = $dir/run/\$type.ceph.pid
log_file = $dir/log/\$name.log
crash_dir = $dir/crash
osd_pool_default_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
[mon.a]
mon_data = $dir/mon/a
[osd]
osd_data = $dir/osd/\$id
osd_objectstore = bluestore
osd_class_update_on_start = false
# without a cap the disk daemon grew to 900 MB in the tests
osd_memory_target = 1073741824
bluestore_cache_autotune = false
bluestore_cache_size = 201326592
bluestore_block_size = 21474836480
[client.rgw]
rgw_data = $dir/rgw
# without tcp_nodelay every small answer waits 40 ms for an acknowledgement
rgw_frontends = beast endpoint=127.0.0.1:$3 tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_dynamic_resharding = false
EOF
}

pid_of() {   # pid_of NAME: the daemon's process, if it lives and is ours
  local pid
  pid=$(cat "$dir/run/$1.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
  tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$conf" && echo "$pid"
}

start() {   # start NAME READY COMMAND...: unless it runs; returns when the shell line READY succeeds
  local name=$1 ready=$2 end=$((SECONDS + wait_seconds))
  shift 2
  if ! pid_of "$name" >/dev/null; then
    setsid "$@" --conf "$conf" -f --setuser root --setgroup root >>"$dir/log/$name.out" 2>&1 </dev/null 9>&- &
    echo $! >"$dir/run/$name.pid"
  fi
  until timeout 20 sh -c "$ready" >"$dir/log/ready.out" 2>&1; do
    pid_of "$name" >/dev/null || die "$name ended: $(tail -3 "$dir/log/$name.out"); more in $dir/log"
    [ $SECONDS -lt $end ] || die "$name is not ready after $wait_seconds s: $(tail -3 "$dir/log/ready.out"); more in $dir/log"
    sleep 0.2
  done
}

once() {   # once FUNCTION: the first time in this DIR; one that was cut short is done again
  [ ! -e "$dir/$1.done" ] || return 0
  "$1" >"$dir/log/$1.out" 2>&1 || die "$1 failed: $(tail -5 "$dir/log/$1.out")"
  touch "$dir/$1.done"
}

setting() { sed -n "s/^$1 = //p" "$conf"; }

make_monitor() {
  rm -rf "$dir/mon/a"; mkdir -p "$dir/mon/a"
  monmaptool --create --clobber --fsid "$(setting fsid)" --addv a "$(setting mon_host)" "$dir/monmap" &&
    timeout "$wait_seconds" ceph-mon --conf "$conf" --mkfs -i a --monmap "$dir/monmap" --setuser root --setgroup root
}

make_disk() {   # the cluster's id serves as the disk's: with the same one a second try is no second disk
  rm -rf "$dir/osd/0"; mkdir -p "$dir/osd/0"
  timeout 30 ceph --connect-timeout 15 osd new "$(setting fsid)" 0 &&
    timeout "$wait_seconds" ceph-osd --conf "$conf" -i 0 --mkfs --osd-uuid "$(setting fsid)" --setuser root --setgroup root
}

make_user() {   # make_user NAME KEY SECRET
  local admin=(timeout "$wait_seconds" radosgw-admin --conf "$conf" -n client.rgw user --uid "$1")
  "${admin[@]}" info || "${admin[@]}" create --display-name "$1" --access-key "$2" --secret-key "$3"
}

make_users() {   # the guest may do what a policy of the tester's allows
  make_user tester testkey testsecret && make_user guest guestkey guestsecret
}

up() {
  local began=$SECONDS
  [ -z "$(missing)" ] || die "$(missing) is missing: run 'scripts/s3-server.sh install' first"
  enter "${1:-}"
  exec 9>"$dir/lock" && flock -w "$wait_seconds" 9 || die "another s3-server.sh works on $dir"
  ulimit -n "$(ulimit -Hn)" 2>/dev/null
  [ -e "$conf" ] || configure
  local port; port=$(cat "$dir/port")
  once make_monitor
  start mon "ceph --connect-timeout 5 mon stat" ceph-mon -i a
  once make_disk
  # after a kill the map may still call the dead process up: the one that runs must say that it is active
  start osd "ceph --admin-daemon '$dir/run/osd.0.asok' status | grep -q '\"state\": \"active\"'" ceph-osd -i 0
  start rgw "curl -s -o /dev/null --max-time 5 http://127.0.0.1:$port/" radosgw -n client.rgw
  once make_users
  say "up in $((SECONDS - began)) s on http://127.0.0.1:$port"
  cat <<EOF
export AWS_ACCESS_KEY_ID=testkey
export AWS_SECRET_ACCESS_KEY=testsecret
export S3_GUEST_ACCESS_KEY_ID=guestkey
export S3_GUEST_SECRET_ACCESS_KEY=guestsecret
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_REGION=us-east-1
export AWS_EC2_METADATA_DISABLED=true
EOF
}

down() {
  [ -e "${1:-}/ceph.conf" ] || { say "no server at ${1:-(no directory given)}"; return 0; }
  enter "$1"
  for name in rgw osd mon; do
    local pid end=$((SECONDS + 15))
    pid=$(pid_of $name) && kill -TERM "$pid" || continue
    while pid_of $name >/dev/null; do
      [ $SECONDS -lt $end ] || kill -KILL "$pid" 2>/dev/null
      sleep 0.2
    done
  done
}

case ${1:-} in
  install) install ;;
  up) up "${2:-}" ;;
  down) down "${2:-}" ;;
  destroy)
    [ -e "${2:-}" ] || exit 0
    [ -e "$2/ceph.conf" ] || die "$2 holds no server of this script; not deleted"
    down "$2" && rm -rf -- "$dir" ;;
  *) sed -n '2,/^set -u/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
esac

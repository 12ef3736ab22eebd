#!/usr/bin/env bash
# A Ray cluster of two hosts on one Linux machine, for tests of what is lost with a host, or with the link to it.
#
#   scripts/two-hosts-ray.sh up DIR                     start both hosts, and Ray on them; prints Ray's address there
#   scripts/two-hosts-ray.sh exec DIR HOST COMMAND...   run a command on a host: head or worker
#   scripts/two-hosts-ray.sh cut DIR                    lose each packet between them, silently: no reset, no carrier loss
#   scripts/two-hosts-ray.sh restore DIR                mend the link
#   scripts/two-hosts-ray.sh kill-raylet DIR            SIGKILL the worker's raylet
#   scripts/two-hosts-ray.sh kill-host DIR              SIGKILL all processes of the worker, as a machine that is switched off
#   scripts/two-hosts-ray.sh start DIR                  start Ray on the worker again
#   scripts/two-hosts-ray.sh down DIR                   stop everything, delete DIR
#
# A host is a network namespace with processes, mounts, host name and /dev/shm of its own. A cable joins the two, and
# nothing else: no address outside is reached. Both see this machine's files, which stand for a store that stays
# reachable from everywhere while the link is cut. Needs root, iproute2 and util-linux. RAY_BIN is the folder of `ray`
# (that of this checkout's .venv); HEAD_CPUS and WORKER_CPUS are what Ray may use (1 and 2); HEAD_DASHBOARD=true starts
# the dashboard on the head's port 8265, which takes jobs; RAY_* is passed on.
set -u -o pipefail
umask 022
ray_bin=${RAY_BIN:-$(cd "$(dirname "$0")/.." && pwd)/.venv/bin}
store_bytes=${STORE_BYTES:-150000000}
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-disabled} RAY_USAGE_STATS_ENABLED=0
nobody=02:00:00:00:00:01   # a link address that nobody has

die() { echo "two-hosts-ray.sh: $*" >&2; exit 1; }

able() {   # refuse at once what would fail half-way
  [ "$(id -u)" = 0 ] || die "needs root: it makes network namespaces"
  for tool in ip unshare nsenter; do command -v $tool >/dev/null || die "needs $tool (iproute2, util-linux)"; done
}

enter() {   # enter DIR: what all the other functions work on
  [ -n "${1:-}" ] || die "which directory? (up DIR, down DIR ...)"
  dir=$(cd "$1" 2>/dev/null && pwd) || die "there is no $1: run up first"
  [ ${#dir} -le 40 ] || die "$dir is too long a path for Ray's sockets (40 characters at most)"
  name=d$(echo "$dir" | cksum | cut -c1-6)   # of this DIR: several clusters can live side by side
}

address() { case $1 in head) echo 10.77.0.1 ;; worker) echo 10.77.0.2 ;; *) die "no host $1: head or worker" ;; esac; }
other() { [ "$1" = head ] && echo worker || echo head; }

lives() {   # lives HOST: its first process is there
  local pid; pid=$(cat "$dir/$1.pid" 2>/dev/null) && kill -0 "$pid" 2>/dev/null
}

boot() {   # boot HOST: its first process, with whose end all its processes end
  local host=$1 outer inner
  ip netns exec "$name-$host" unshare --mount --uts --ipc --pid --fork --kill-child=SIGKILL --mount-proc \
    --propagation private bash -c 'hostname "$0" && mount -t tmpfs -o size=1g tmpfs /dev/shm && exec sleep infinity' \
    "$host" >"$dir/$host.boot" 2>&1 </dev/null &
  outer=$!; disown
  for _ in $(seq 100); do   # once it sleeps, its mounts are there
    inner=$(tr -d ' ' <"/proc/$outer/task/$outer/children" 2>/dev/null)
    [ -n "$inner" ] && [ "$(cat "/proc/$inner/comm" 2>/dev/null)" = sleep ] && { echo "$inner" >"$dir/$host.pid"; return; }
    sleep 0.05
  done
  die "$host did not boot: $(cat "$dir/$host.boot")"
}

on() {   # on HOST COMMAND...: in all of its namespaces, here
  local host=$1; shift
  lives "$host" || die "$host is not up in $dir"
  nsenter --target "$(cat "$dir/$host.pid")" --mount --uts --ipc --net --pid --wd="$PWD" -- "$@"
}

start_ray() {   # start_ray HOST
  local host=$1 options
  case $host in
    head) options=(--head --port 6379 --num-cpus "${HEAD_CPUS:-1}" --include-dashboard "${HEAD_DASHBOARD:-false}") ;;
    worker) options=(--address "$(address head):6379" --num-cpus "${WORKER_CPUS:-2}") ;;
  esac
  for _ in 1 2 3; do   # busy cores exceed the 30 s that Ray gives a node to start
    on "$host" "$ray_bin/ray" start "${options[@]}" --num-gpus 0 --node-ip-address "$(address "$host")" \
      --node-name "$host" --object-store-memory "$store_bytes" --temp-dir "$dir/$host" --disable-usage-stats \
      >"$dir/$host.start" 2>&1 </dev/null && return
    on "$host" "$ray_bin/ray" stop --force >/dev/null 2>&1   # sees this host's processes only
  done
  die "Ray does not start on $host: $(tail -25 "$dir/$host.start")"
}

up() {
  [ -x "$ray_bin/ray" ] || die "no ray in $ray_bin: set RAY_BIN"
  ! lives head || die "is up already in $dir"
  trap '[ $? = 0 ] || down' EXIT
  for host in head worker; do ip netns add "$name-$host" && ip -n "$name-$host" link set lo up || die "no namespace"; done
  ip -n "$name-head" link add eth0 type veth peer name eth0 netns "$name-worker" || die "no cable"
  for host in head worker; do
    ip -n "$name-$host" addr add "$(address $host)/24" dev eth0 && ip -n "$name-$host" link set eth0 up || die "no address"
  done
  for host in head worker; do boot $host; done
  for host in head worker; do start_ray $host; done
  echo "$(address head):6379"
}

cut_link() {
  for host in head worker; do
    ip -n "$name-$host" neigh replace "$(address "$(other $host)")" lladdr $nobody dev eth0 nud permanent || die "not cut"
  done
}

restore() {
  for host in head worker; do ip -n "$name-$host" neigh del "$(address "$(other $host)")" dev eth0 2>/dev/null; done
  return 0
}

kill_raylet() {
  # shellcheck disable=SC2016
  on worker sh -c 'for p in /proc/[0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = raylet ] && kill -9 "${p#/proc/}" && exit; done; exit 1' ||
    die "the worker has no raylet"
}

kill_host() {
  kill -9 "$(cat "$dir/worker.pid")" || die "the worker is not up"
}

start() {
  on worker "$ray_bin/ray" stop --force >/dev/null 2>&1   # what is left of the node that was lost
  restore
  start_ray worker
}

down() {
  trap - EXIT
  for host in head worker; do
    lives $host && kill -9 "$(cat "$dir/$host.pid")"
    ip netns del "$name-$host" 2>/dev/null
  done
  for _ in $(seq 50); do rm -rf "$dir" 2>/dev/null && break; sleep 0.1; done   # the last of them may still write
}

command=${1:-}; shift
case $command in
  up | cut | restore | kill-raylet | kill-host | start | down | exec) able
    [ "$command" != up ] || [ -z "${1:-}" ] || mkdir -p "$1"
    enter "$@"; shift ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
case $command in
  up) up ;; cut) cut_link ;; restore) restore ;; kill-raylet) kill_raylet ;; kill-host) kill_host ;;
  start) start ;; down) down ;;
  exec) on "$@" ;;
esac

#!/usr/bin/env bash
# Runs a command of the integration module against a real cluster that has detour's images: the one of $KUBECONFIG, or else a
# local one that this script starts and stops, unless it runs already. $MEANWHILE, a command, runs while the cluster starts.
# The "laptop" is this machine in a mount namespace with its own resolver configuration, run directory and state directory, so
# that the machine's stay untouched.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
say() { echo "== $*" >&2; }

cleanup() {
  bin/detour quit >/dev/null 2>&1 || true
  if [ -n "${starting:-}" ]; then kill "$starting" 2>/dev/null && wait "$starting" 2>/dev/null || true; fi
  if [ -n "${started:-}" ]; then say "stopping the local cluster"; bin/cluster down; fi
}

# All is compiled before the first test runs: a test beside a compiler would measure the compiler.
say "building detour, its images and the suites' programs"
make -s deps build-programs
if [ -z "${KUBECONFIG:-}" ]; then
  bin/cluster build
  bin/cluster status | grep -q 'is ready' || started=yes
  trap cleanup EXIT
  say "starting the local Kubernetes"
  bin/cluster up >/dev/null &
  starting=$!
  if [ -n "${MEANWHILE:-}" ]; then $MEANWHILE; fi
  wait "$starting"
  starting=
  KUBECONFIG=$(bin/cluster kubeconfig)
  export KUBECONFIG
elif [ -n "${MEANWHILE:-}" ]; then
  $MEANWHILE
fi
if [ "$KUBECONFIG" = "$(bin/cluster kubeconfig)" ]; then
  bin/cluster load-image bin/traffic.tar bin/shop.tar bin/bench.tar
fi
export GODEBUG=http2xconnect=1 # the subject of a laptop takes WebSockets over HTTP/2 (integration/subject)
export PATH="$root/bin:$HOME/.cache/detour/cluster/bin:$PATH" DETOUR_ROOT=$root
say "running: $*"
unshare --mount --propagation private bash -euc '
  own=$(mktemp -d); trap "detour quit >/dev/null 2>&1 || true; umount -l /etc/resolv.conf; rm -rf $own" EXIT
  cp /etc/resolv.conf "$own/resolv.conf"; mkdir -p "$own/run" "$own/state"
  mount --bind "$own/resolv.conf" /etc/resolv.conf
  export DETOUR_RUN_DIR="$own/run" DETOUR_STATE_DIR="$own/state"
  "$@"' run "$@"

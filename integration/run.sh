#!/usr/bin/env bash
# Runs a command of the integration module against a real cluster with detour's images on it: $KUBECONFIG's when set, else a local
# one that is started for it and stopped afterwards, unless it ran before. The "laptop" is this machine with a resolver
# configuration, a run and a state directory of its own (a mount namespace), so that the machine's stay untouched.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
say() { echo "== $*" >&2; }

cleanup() {
  bin/detour quit >/dev/null 2>&1 || true
  if [ -n "${started:-}" ]; then say "stopping the local cluster"; bin/cluster down; fi
}

say "building detour and its images"
make -s deps build image bin/cluster bin/bench
if [ -z "${KUBECONFIG:-}" ]; then
  bin/cluster status | grep -q 'is ready' || started=yes
  trap cleanup EXIT
  say "starting the local Kubernetes (the first time it is compiled, about 10 minutes)"
  KUBECONFIG=$(bin/cluster up)
  export KUBECONFIG
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

#!/usr/bin/env bash
# The main job, as a transcript: a request inside a real cluster is answered by a process on the laptop.
set -euo pipefail
cd "$(dirname "$0")/.."
bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '\033[36m$ %s\033[0m\n' "$*"; "$@"; }
ask() { run curl -sS --max-time 10 http://frontend.shop/; }

[ "$(id -u)" -eq 0 ] || { echo "make demo makes a network interface and (without KUBECONFIG) a local cluster: run it as root" >&2; exit 1; }
make -s deps build image bin/cluster
image=${IMAGE:-detour.local/traffic:dev}
if [ -z "${KUBECONFIG:-}" ]; then
  bold "1. A real Kubernetes, two nodes, on this machine (the first time it is compiled, about 25 minutes)"
  KUBECONFIG=$(bin/cluster up); export KUBECONFIG
  bin/cluster load-image bin/traffic.tar bin/shop.tar
fi
export PATH="$PWD/bin:$HOME/.cache/detour/cluster/bin:$PATH"
laptop=
# Also on an error and on Ctrl-C: the laptop is put back.
trap '[ -z "$laptop" ] || kill $laptop 2>/dev/null || true; detour quit >/dev/null 2>&1 || true' EXIT

bold "2. The shop: frontend -> catalog (3 pods) -> stock, and detour's traffic-manager"
run kubectl apply -f examples/shop/manifests/shop.yaml
for d in frontend catalog stock; do kubectl -n shop rollout status "deployment/$d" --timeout=120s >/dev/null; done
run detour install --image "$image"
run detour connect -n shop

bold "3. The frontend shows the cluster's catalog"
ask

bold "4. The catalog now runs here, on the laptop, and itself calls stock.shop in the cluster by name"
printf '\033[36m$ EDITION=laptop LISTEN=127.0.0.1:18080 bin/catalog &\033[0m\n'
EDITION=laptop LISTEN=127.0.0.1:18080 bin/catalog & laptop=$!
sleep 0.5
run detour intercept catalog --port 18080
answer=$(ask); echo "$answer"
grep -q '"edition":"laptop"' <<<"$answer"

bold "5. And back"
run detour leave catalog
answer=$(ask); echo "$answer"
grep -q '"edition":"cluster"' <<<"$answer"

bold "6. Play on"
cat <<TXT
  export KUBECONFIG=$KUBECONFIG PATH=$PWD/bin:\$PATH
  EDITION=laptop LISTEN=127.0.0.1:18080 bin/catalog &
  detour intercept catalog --port 18080;  curl http://frontend.shop/;  detour status;  detour list -n shop
Clean up:
  detour quit; detour uninstall; make cluster-down
TXT
run detour quit

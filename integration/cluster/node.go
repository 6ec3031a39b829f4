package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/detour-dev/detour/integration/cluster/image"
)

func (n node) dir(c *Cluster) string    { return c.path(n.name) }
func (n node) socket(c *Cluster) string { return filepath.Join(n.dir(c), "containerd.sock") }

// startNode starts containerd, kubelet and kube-proxy in the node's network namespace.
func (c *Cluster) startNode(n node) error {
	dir := n.dir(c)
	cni := filepath.Join(dir, "cni")
	for _, d := range []string{
		dir, cni, filepath.Join(dir, "containerd"), filepath.Join(dir, "run"),
		filepath.Join(dir, "kubelet"),
	} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	if err := c.cgroup(n.ns); err != nil {
		return err
	}
	files := c.nodeFiles(n, dir, cni)
	for path, text := range files {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	if err := c.start("containerd-"+n.name, n.ns, "containerd", "--config",
		filepath.Join(dir, "containerd.toml")); err != nil {
		return err
	}
	if err := c.waitFor(context.Background(), 30*time.Second,
		func() error { return run("ctr", "-a", n.socket(c), "version") }); err != nil {
		return fmt.Errorf("containerd of %s does not answer: %w; see %s", n.name, err, c.path("logs"))
	}
	if err := c.start("kubelet-"+n.name, n.ns, c.path("bin", "kubelet"), "--config", filepath.Join(dir, "kubelet.yaml"),
		"--kubeconfig", c.path("pki", n.name+".kubeconfig"),
		"--root-dir", filepath.Join(dir, "kubelet"), "--cert-dir", filepath.Join(dir, "kubelet-pki"),
		"--hostname-override", n.name, "--node-ip", n.address+","+n.address6); err != nil {
		return err
	}
	return c.start("kube-proxy-"+n.name, n.ns, c.path("bin", "kube-proxy"), "--config",
		filepath.Join(dir, "kube-proxy.yaml"))
}

// nodeFiles returns the configuration of a node's programs, by path.
func (c *Cluster) nodeFiles(n node, dir, cni string) map[string]string { //nolint:funlen // it is configuration
	// ptp and not bridge: each pod has a routed link of its own, so that service rules see traffic
	// between two pods of one node without br_netfilter. The ranges are the node's; the controller
	// manager gives them out in the order of the nodes' arrival, so they are read from the node by
	// the kubelet's runtime hook through the conf template. The logs of pods lie apart, or each
	// kubelet would delete the other's as those of pods that are gone.
	return map[string]string{
		filepath.Join(dir, "cni.tmpl"): fmt.Sprintf(`{
  "cniVersion": "0.4.0", "name": "pods",
  "plugins": [
    {"type": "ptp", "mtu": 1500, "ipam": {
      "type": "host-local", "dataDir": %q,
      "ranges": [{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    }},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`, filepath.Join(dir, "ipam")),
		filepath.Join(dir, "containerd.toml"): fmt.Sprintf(`version = 2
root = %q
state = %q
oom_score = 0
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "detour.local/pause:1"
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
    conf_template = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`, filepath.Join(dir, "containerd"), filepath.Join(dir, "run"), n.socket(c), cni, filepath.Join(dir, "cni.tmpl")),
		filepath.Join(dir, "kubelet.yaml"): fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %q}}
authorization: {mode: Webhook}
tlsCertFile: %q
tlsPrivateKeyFile: %q
cgroupDriver: cgroupfs
cgroupRoot: /%s
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
localStorageCapacityIsolation: false
clusterDNS: [%s]
clusterDomain: cluster.local
imageMinimumGCAge: 24h
imageGCHighThresholdPercent: 100
evictionHard: {}
resolvConf: ""
registerNode: true
maxPods: 200
podPidsLimit: -1
podLogsDir: %q
serializeImagePulls: false
syncFrequency: 10s
containerRuntimeEndpoint: "unix://%s"
`, c.path("pki", "ca.crt"), c.path("pki", n.name+".crt"), c.path("pki", n.name+".key"), n.ns, dnsAddress,
			filepath.Join(dir, "pod-logs"), n.socket(c)),
		filepath.Join(dir, "kube-proxy.yaml"): fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: "::"
mode: iptables
hostnameOverride: %s
clusterCIDR: %q
clientConnection: {kubeconfig: %q}
conntrack: {maxPerCore: 0}
iptables: {minSyncPeriod: 100ms}
`, n.name, podCIDRs, c.path("pki", "kube-proxy.kubeconfig")),
	}
}

// cgroup makes a node's own cgroup, or each kubelet would end the other's pods as orphans.
func (c *Cluster) cgroup(name string) error {
	controllers, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		return fmt.Errorf("list the cgroup controllers: %w", err)
	}
	for _, dir := range controllers {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
			continue
		}
		own := filepath.Join(dir, name)
		if err := os.MkdirAll(own, 0o755); err != nil {
			return fmt.Errorf("make the cgroup %s: %w", own, err)
		}
		if filepath.Base(dir) == "cpuset" {
			for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
				raw, err := os.ReadFile(filepath.Join(dir, f))
				if err == nil {
					_ = os.WriteFile(filepath.Join(own, f), []byte(strings.TrimSpace(string(raw))), 0o644)
				}
			}
		}
	}
	return nil
}

// imagesForSystem makes the images of pause and CoreDNS and gives them to the nodes.
func (c *Cluster) imagesForSystem(ctx context.Context, source string, log *slog.Logger) error {
	pauseProgram, err := c.buildPause(ctx, source, log)
	if err != nil {
		return err
	}
	pause, coredns := c.path("pause.tar"), c.path("coredns.tar")
	if err := image.Write(pause, "detour.local/pause:1", image.Options{
		Entrypoint: []string{"/pause"},
		Files:      map[string]string{"/pause": pauseProgram},
	}); err != nil {
		return err
	}
	if err := image.Write(coredns, "detour.local/coredns:1", image.Options{
		Entrypoint: []string{"/coredns"},
		Files:      map[string]string{"/coredns": c.path("bin", "coredns")},
	}); err != nil {
		return err
	}
	return c.LoadImages(pause, coredns)
}

// LoadImages gives image tarballs to every node.
func (c *Cluster) LoadImages(tarballs ...string) error {
	for _, n := range c.nodes() {
		for _, t := range tarballs {
			if err := run("ctr", "-a", n.socket(c), "-n", "k8s.io", "images", "import", t); err != nil {
				return fmt.Errorf("load %s on %s: %w", filepath.Base(t), n.name, err)
			}
		}
	}
	return nil
}

package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Up starts the cluster and waits until its nodes are ready. It does nothing when the cluster is
// already there, and clears away what a crash left. source is the directory
// integration/cluster/build.
func (c *Cluster) Up(ctx context.Context, source string, log *slog.Logger) error {
	if c.healthy() {
		return nil
	}
	if err := c.Build(ctx, source, log); err != nil {
		return err
	}
	if err := c.Down(log); err != nil {
		return fmt.Errorf("clear what was left: %w", err)
	}
	for _, d := range []string{"logs", "pids", "etcd", "manifests"} {
		if err := os.MkdirAll(c.path(d), 0o755); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	// The programs were unlinked by Down together with the rest of the directory.
	if err := c.Build(ctx, source, log); err != nil {
		return err
	}
	if err := c.pki(); err != nil {
		return err
	}
	log.Info("making the network", "nodes", c.Nodes)
	if err := c.network(); err != nil {
		return err
	}
	log.Info("starting the control plane")
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	log.Info("starting the nodes")
	for _, n := range c.nodes() {
		if err := c.startNode(n); err != nil {
			return err
		}
	}
	if err := c.imagesForSystem(ctx, source, log); err != nil {
		return err
	}
	return c.awaitReady(ctx, source, log)
}

// awaitReady starts CoreDNS, and waits until the nodes and CoreDNS are ready.
func (c *Cluster) awaitReady(ctx context.Context, source string, log *slog.Logger) error {
	log.Info("waiting for the nodes and CoreDNS")
	if err := c.Kubectl("apply", "-f", filepath.Join(source, "..", "coredns.yaml")); err != nil {
		return err
	}
	if err := c.waitFor(ctx, 2*time.Minute, func() error {
		return c.Kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=5s")
	}); err != nil {
		return fmt.Errorf("the nodes do not become ready: %w; see %s", err, c.path("logs"))
	}
	for _, n := range c.nodes() {
		if err := c.routePods(n); err != nil {
			return err
		}
	}
	if err := c.waitFor(ctx, 2*time.Minute, func() error {
		return c.Kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=5s")
	}); err != nil {
		return fmt.Errorf("CoreDNS does not become ready: %w; see %s", err, c.path("logs"))
	}
	return os.WriteFile(c.path("up"), []byte(fmt.Sprint(c.Nodes)), 0o644)
}

// healthy reports whether this cluster is up with the wanted number of nodes and answers.
func (c *Cluster) healthy() bool {
	raw, err := os.ReadFile(c.path("up"))
	if err != nil || string(raw) != fmt.Sprint(c.Nodes) || len(c.recorded()) < 4+3*c.Nodes {
		return false
	}
	return c.answers("/readyz") == nil
}

func (c *Cluster) answers(path string) error {
	cert, err := tls.LoadX509KeyPair(c.path("pki", "admin.crt"), c.path("pki", "admin.key"))
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{
			Certificates:       []tls.Certificate{cert},
			InsecureSkipVerify: true, //nolint:gosec // this only asks whether the server answers
		},
	}}
	resp, err := client.Get(c.Server() + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func (c *Cluster) waitFor(ctx context.Context, limit time.Duration, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Kubectl runs kubectl as the administrator.
func (c *Cluster) Kubectl(args ...string) error {
	administrator := []string{"--kubeconfig", c.Kubeconfig(), "--cache-dir", c.path("kubectl-cache")}
	return run(c.path("bin", "kubectl"), append(administrator, args...)...)
}

// network joins the namespaces with a bridge in the control plane's; the host has one leg on it and
// no route further.
func (c *Cluster) network() error {
	var b strings.Builder
	in := func(ns, line string) { fmt.Fprintf(&b, "nsenter --net=/run/netns/%s -- %s\n", ns, line) }
	controlPlane, apiServer, apiServer6 := c.controlPlane(), c.apiServer(), c.address6(apiServerHost)
	fmt.Fprintf(&b, "ip netns add %s\n", controlPlane)
	in(controlPlane, "ip link set lo up")
	// With an address of its own: else it takes the lowest of its ports', and when that port
	// leaves, as a laptop does, all others go on sending to an address that is nobody's for up to a
	// minute.
	in(controlPlane, "ip link add fabric address "+fabricAddress+" type bridge")
	in(controlPlane, "ip addr add "+apiServer+"/24 dev fabric")
	in(controlPlane, "ip -6 addr add "+apiServer6+"/64 dev fabric nodad")
	in(controlPlane, "ip link set fabric up")
	fmt.Fprintf(&b, "ip link add %s type veth peer name host netns %s\n", c.hostLink(), controlPlane)
	in(controlPlane, "ip link set host master fabric up")
	fmt.Fprintf(&b, "ip addr add %s/24 dev %s\nip link set %s up\n", c.address(thisHost), c.hostLink(), c.hostLink())
	for _, n := range c.nodes() {
		fmt.Fprintf(&b, "ip netns add %s\n", n.ns)
		fmt.Fprintf(&b, "ip link add %s netns %s type veth peer name eth0 netns %s\n", n.name, controlPlane, n.ns)
		in(controlPlane, "ip link set "+n.name+" master fabric up")
		in(n.ns, "ip link set lo up")
		in(n.ns, "ip addr add "+n.address+"/24 dev eth0")
		in(n.ns, "ip -6 addr add "+n.address6+"/64 dev eth0 nodad")
		in(n.ns, "ip link set eth0 up")
		in(n.ns, "ip route add default via "+apiServer)
		in(n.ns, "ip -6 route add default via "+apiServer6)
		in(n.ns, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0")
	}
	return script(b.String())
}

// routePods tells the control plane and the other nodes where a node's pods are.
func (c *Cluster) routePods(n node) error {
	out, err := exec.Command(c.path("bin", "kubectl"), "--kubeconfig", c.Kubeconfig(), "get", "node", n.name, "-o",
		"jsonpath={.spec.podCIDRs[*]}").Output()
	if err != nil {
		return fmt.Errorf("ask for the pod networks of %s: %w", n.name, err)
	}
	places := []string{c.controlPlane()}
	for _, other := range c.nodes() {
		if other.name != n.name {
			places = append(places, other.ns)
		}
	}
	for _, cidr := range strings.Fields(string(out)) {
		via, family := n.address, "-4"
		if strings.Contains(cidr, ":") {
			via, family = n.address6, "-6"
		}
		for _, ns := range places {
			inside := []string{"--net=/run/netns/" + ns, "--", "ip", family, "route", "replace", cidr, "via", via}
			if err := run("nsenter", inside...); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) startControlPlane(ctx context.Context) error {
	pki := func(name string) string { return c.path("pki", name) }
	if err := c.start("etcd", c.controlPlane(), c.path("bin", "etcd"), "--data-dir", c.path("etcd"),
		"--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380", "--log-level=warn"); err != nil {
		return err
	}
	if err := c.start("kube-apiserver", c.controlPlane(), c.path("bin", "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--advertise-address="+c.apiServer(), "--bind-address=::",
		"--secure-port=6443",
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range="+serviceCIDRs,
		"--client-ca-file="+pki("ca.crt"), "--tls-cert-file="+pki("apiserver.crt"),
		"--tls-private-key-file="+pki("apiserver.key"),
		"--kubelet-client-certificate="+pki("apiserver-kubelet.crt"),
		"--kubelet-client-key="+pki("apiserver-kubelet.key"), "--kubelet-certificate-authority="+pki("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+pki("service-account.crt"),
		"--service-account-signing-key-file="+pki("service-account.key"),
		"--requestheader-client-ca-file="+pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file="+pki("front-proxy-client.crt"),
		"--proxy-client-key-file="+pki("front-proxy-client.key"),
		"--enable-aggregator-routing=true"); err != nil {
		return err
	}
	if err := c.waitFor(ctx, time.Minute, func() error { return c.answers("/readyz") }); err != nil {
		return fmt.Errorf("the API server does not become ready: %w; see %s", err, c.path("logs", "kube-apiserver.log"))
	}
	if err := c.start("kube-controller-manager", c.controlPlane(), c.path("bin", "kube-controller-manager"),
		"--kubeconfig="+pki("controller-manager.kubeconfig"),
		"--authentication-kubeconfig="+pki("controller-manager.kubeconfig"),
		"--authorization-kubeconfig="+pki("controller-manager.kubeconfig"),
		"--use-service-account-credentials=true", "--root-ca-file="+pki("ca.crt"),
		"--service-account-private-key-file="+pki("service-account.key"),
		"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
		"--allocate-node-cidrs=true", "--cluster-cidr="+podCIDRs, "--service-cluster-ip-range="+serviceCIDRs,
		"--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64",
		"--leader-elect=false", "--bind-address=127.0.0.1"); err != nil {
		return err
	}
	return c.start("kube-scheduler", c.controlPlane(), c.path("bin", "kube-scheduler"),
		"--kubeconfig="+pki("scheduler.kubeconfig"), "--authentication-kubeconfig="+pki("scheduler.kubeconfig"),
		"--authorization-kubeconfig="+pki("scheduler.kubeconfig"),
		"--leader-elect=false", "--bind-address=127.0.0.1")
}

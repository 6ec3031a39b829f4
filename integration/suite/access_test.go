package suite

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
)

// as returns a kubeconfig of the cluster for other credentials, which are flags of "kubectl config set-credentials".
func as(t *testing.T, credentials ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	raw, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	name := kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].name}")
	kubectl(t, append([]string{"--kubeconfig", path, "config", "set-credentials", "someone"}, credentials...)...)
	kubectl(t, "--kubeconfig", path, "config", "set-context", "someone", "--cluster", name, "--user", "someone")
	kubectl(t, "--kubeconfig", path, "config", "use-context", "someone")
	return path
}

// developer makes a service account in shop and returns a kubeconfig with its token.
func developer(t *testing.T, name string) string {
	t.Helper()
	kubectl(t, "-n", "shop", "create", "serviceaccount", name)
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "serviceaccount", name) })
	return as(t, "--token="+kubectl(t, "-n", "shop", "create", "token", name))
}

// refused runs detour, which must fail with one sentence, and returns it.
func refused(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command("detour", args...)
	require.Error(t, err, out)
	lines := strings.Split(out, "\n")
	last := lines[len(lines)-1]
	require.True(t, strings.HasPrefix(last, "detour: "), out)
	require.NotContains(t, strings.TrimPrefix(last, "detour: "), "rpc error", out)
	return last
}

// A developer who has the shipped role in shop, and nothing else in the cluster, does all of the main job there and nothing elsewhere.
func TestDeveloperWithTheShippedRole(t *testing.T) {
	other(t)
	mine := developer(t, "jane")
	kubectl(t, "-n", "shop", "create", "rolebinding", "jane", "--clusterrole=detour-user", "--serviceaccount=shop:jane")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "rolebinding", "jane") })
	port := laptopService(t)

	require.Contains(t, detour(t, "--kubeconfig", mine, "list", "-n", "shop"), "catalog")
	detour(t, "--kubeconfig", mine, "intercept", "catalog", "--port", port, "-n", "shop")
	t.Cleanup(func() { _, _ = command("detour", "quit") })
	require.Equal(t, "laptop", inCluster())
	require.Contains(t, detour(t, "--kubeconfig", mine, "status"), "catalog")
	detour(t, "--kubeconfig", mine, "leave", "catalog")
	require.Equal(t, "cluster", inCluster())
	detour(t, "quit")

	for _, args := range [][]string{{"connect", "-n", "other"}, {"intercept", "target", "--port", port + ":http", "-n", "other"}, {"list", "-n", "other"}} {
		said := refused(t, append(args, "--kubeconfig", mine)...)
		require.Contains(t, said, "detour-user", "it says what is missing")
		require.Contains(t, said, "other")
	}
	require.Contains(t, refused(t, "install", "--image", managerImage, "--kubeconfig", mine), "administrator")
	require.Equal(t, "not connected", detour(t, "status"))
}

func TestDeveloperWithoutARole(t *testing.T) {
	joe := developer(t, "joe")
	for _, command := range []string{"install", "uninstall"} {
		require.Contains(t, refused(t, command, "--kubeconfig", joe), "this needs an administrator of the cluster")
	}
	said := refused(t, "connect", "-n", "shop", "--kubeconfig", joe)
	require.Contains(t, said, "system:serviceaccount:shop:joe")
	require.Contains(t, said, "detour-user")
	require.Equal(t, "not connected", detour(t, "status"))
	require.NotContains(t, kubectl(t, "get", "sessions", "-A"), "joe")
}

// expired makes a client certificate of the cluster's own authority that was valid until yesterday.
func expired(t *testing.T) (cert, key string) {
	t.Helper()
	c, err := cluster.Default()
	require.NoError(t, err)
	read := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(c.Dir, "pki", name))
		require.NoError(t, err)
		block, _ := pem.Decode(raw)
		require.NotNil(t, block)
		return block.Bytes
	}
	authority, err := x509.ParseCertificate(read("ca.crt"))
	require.NoError(t, err)
	signer, err := x509.ParsePKCS8PrivateKey(read("ca.key"))
	require.NoError(t, err)
	mine, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "jane", Organization: []string{"system:masters"}}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour),
	}, authority, &mine.PublicKey, signer)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(mine)
	require.NoError(t, err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "crt"), filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	return cert, key
}

func TestExpiredCredentials(t *testing.T) {
	cert, key := expired(t)
	config := as(t, "--client-certificate="+cert, "--client-key="+key)
	for _, args := range [][]string{{"connect", "-n", "shop"}, {"list", "-n", "shop"}} {
		require.Contains(t, refused(t, append(args, "--kubeconfig", config)...), "expired")
	}
}

func TestOtherVersion(t *testing.T) {
	of := func(version string) string { // the Makefile builds them
		return filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "detour-"+version)
	}
	newer := of("v0.9.0")
	said, err := command(newer, "connect", "-n", "shop")
	require.Error(t, err)
	require.Contains(t, said, "v0.9.0")
	require.Contains(t, said, "install the same version")
	require.Equal(t, "not connected", detour(t, "status"))
	require.NotContains(t, kubectl(t, "get", "sessions", "-A"), "shop")

	// One of the same series works, and the command of one with the daemon of the other.
	same := of("v0.1.9")
	said, err = command(same, "connect", "-n", "shop")
	require.NoError(t, err, said)
	t.Cleanup(func() { _, _ = command("detour", "quit") })
	require.Contains(t, detour(t, "status"), "connected")
	versions := detour(t, "version")
	require.Contains(t, versions, "v0.1.9")
	require.Contains(t, versions, "v0.1.0")
}

func TestNoSuchNamespace(t *testing.T) {
	for _, command := range []string{"connect", "list"} {
		require.Contains(t, refused(t, command, "-n", "nowhere"), `namespace "nowhere" does not exist`)
	}
}

// Anybody may read the key in another's Session. Who claims it gets nothing, and the other keeps all.
func TestKeyOfAnother(t *testing.T) {
	connected(t)
	shop := kubectl(t, "-n", "shop", "get", "sessions", "-o", "jsonpath={.items[*].metadata.name} {.items[*].spec.clientVersion} {.items[*].spec.publicKey}")
	first := strings.Fields(shop)
	require.Len(t, first, 3)
	claim := filepath.Join(t.TempDir(), "session.yaml")
	require.NoError(t, os.WriteFile(claim, []byte("apiVersion: detour.dev/v1alpha1\nkind: Session\nmetadata: {name: claim, namespace: default}\nspec: {publicKey: "+first[2]+", clientVersion: "+first[1]+", user: bob, host: bob}\n"), 0o600))
	kubectl(t, "create", "-f", claim)
	t.Cleanup(func() { kubectl(t, "delete", "-f", claim, "--ignore-not-found") })
	status := func() string {
		return kubectl(t, "-n", "default", "get", "session", "claim", "-o", "jsonpath={.status}")
	}
	require.Eventually(t, func() bool { return strings.Contains(status(), "KeyTaken") }, 30*time.Second, 100*time.Millisecond)
	require.Contains(t, status(), "session "+first[0]+" in namespace shop owns this public key")
	require.NotContains(t, status(), "addresses")
	require.NotContains(t, status(), `"connected":true`)
	require.Equal(t, "cluster", edition(t, "http://catalog.shop"))
}

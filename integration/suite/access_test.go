package suite

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
	"github.com/detour-dev/detour/integration/suite/kit"
)

// A developer who has the shipped role in the shop, and no other right in the cluster, can do the
// whole main job there and nothing elsewhere.
func TestDeveloperWithTheShippedRole(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine, kit.Catalog), kit.Uses(kit.Frontend, kit.Target))
	kit.DeployTarget(t)
	mine := kit.Developer(t, "jane")
	port := kit.ServePage(t)

	require.Contains(t, kit.Detour(t, "--kubeconfig", mine, "list", "-n", "shop"), "catalog")
	kit.Detour(t, "--kubeconfig", mine, "intercept", "catalog", "--port", port, "-n", "shop")
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") })
	require.Equal(t, "laptop", kit.ClusterEdition())
	require.Contains(t, kit.Detour(t, "--kubeconfig", mine, "status"), "catalog")
	kit.Detour(t, "--kubeconfig", mine, "leave", "catalog")
	require.Equal(t, "cluster", kit.ClusterEdition())
	kit.Detour(t, "quit")

	for _, args := range [][]string{{"connect", "-n", "other"}, {
		"intercept", "target", "--port", port + ":http", "-n",
		"other",
	}, {"list", "-n", "other"}} {
		said := kit.DetourFails(t, append(args, "--kubeconfig", mine)...)
		require.Contains(t, said, "detour-user", "it says what is missing")
		require.Contains(t, said, "other")
	}
	require.Contains(t, kit.DetourFails(t, "install", "--image", kit.ManagerImage, "--kubeconfig", mine),
		"administrator")
	require.Equal(t, "not connected", kit.Detour(t, "status"))
}

func TestDeveloperWithoutARole(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	joe := kit.ServiceAccount(t, "joe")
	for _, command := range []string{"install", "uninstall"} {
		require.Contains(t, kit.DetourFails(t, command, "--kubeconfig", joe),
			"only an administrator of the cluster may do this")
	}
	said := kit.DetourFails(t, "connect", "-n", "shop", "--kubeconfig", joe)
	require.Contains(t, said, "system:serviceaccount:shop:joe")
	require.Contains(t, said, "detour-user")
	require.Equal(t, "not connected", kit.Detour(t, "status"))
	require.NotContains(t, kit.Kubectl(t, "get", "sessions", "-A"), "joe")
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
		SerialNumber: big.NewInt(1), Subject: pkix.Name{
			CommonName:   "jane",
			Organization: []string{"system:masters"},
		}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
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
	kit.Parallel(t, kit.Changes(kit.Machine))
	cert, key := expired(t)
	config := kit.KubeconfigWith(t, "--client-certificate="+cert, "--client-key="+key)
	for _, args := range [][]string{{"connect", "-n", "shop"}, {"list", "-n", "shop"}} {
		require.Contains(t, kit.DetourFails(t, append(args, "--kubeconfig", config)...), "expired")
	}
}

func TestOtherVersion(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	of := func(version string) string { // the Makefile builds these
		return filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "detour-"+version)
	}
	newer := of("v0.9.0")
	said, err := kit.Run(newer, "connect", "-n", "shop")
	require.Error(t, err)
	require.Contains(t, said, "v0.9.0")
	require.Contains(t, said, "install that version on the laptop")
	require.Equal(t, "not connected", kit.Detour(t, "status"))
	require.Empty(t, kit.SessionsOf(t, kit.HostName(t)))

	// A version of the same series works, also the command of one version with the daemon of the
	// other.
	same := of("v0.1.9")
	said, err = kit.Run(same, "connect", "-n", "shop")
	require.NoError(t, err, said)
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") })
	require.Contains(t, kit.Detour(t, "status"), "connected")
	versions := kit.Detour(t, "version")
	require.Contains(t, versions, "v0.1.9")
	require.Contains(t, versions, "v0.1.0")
}

func TestNoSuchNamespace(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	for _, command := range []string{"connect", "list"} {
		require.Contains(t, kit.DetourFails(t, command, "-n", "nowhere"), `namespace "nowhere" does not exist`)
	}
}

// Everybody may read the key in another developer's Session. A session that claims such a key gets
// nothing, and the other session keeps everything.
func TestKeyOfAnother(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine, kit.Catalog))
	kit.Connect(t)
	shop := kit.Kubectl(t, "-n", "shop", "get", "session", kit.MachineSession(), "-o",
		"jsonpath={.metadata.name} {.spec.clientVersion} {.spec.publicKey}")
	first := strings.Fields(shop)
	require.Len(t, first, 3)
	claim := filepath.Join(t.TempDir(), "session.yaml")
	manifest := fmt.Sprintf(`
apiVersion: detour.dev/v1alpha1
kind: Session
metadata: {name: claim, namespace: default}
spec: {publicKey: %s, clientVersion: %s, user: bob, host: bob}
`, first[2], first[1])
	require.NoError(t, os.WriteFile(claim, []byte(manifest), 0o600))
	kit.Kubectl(t, "create", "-f", claim)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", claim, "--ignore-not-found") })
	status := func() string {
		return kit.Query(t, "default", "session claim", "{.status}")
	}
	kit.Eventually(t, func() bool { return strings.Contains(status(), "KeyTaken") })
	require.Contains(t, status(), "session "+first[0]+" in namespace shop owns this public key")
	require.NotContains(t, status(), "addresses")
	require.NotContains(t, status(), `"connected":true`)
	require.Equal(t, "cluster", kit.Edition(t, "http://catalog.shop"))
}

// Command echo is a service of the suites that speaks what the shop does not: HTTP over TLS, with
// the certificate in a directory, and UDP.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

func main() {
	secured := flag.String("https", "", "where to answer HTTPS")
	certificates := flag.String("certificates", "/certificates", "the directory with tls.crt and tls.key")
	datagrams := flag.String("udp", "", "where to answer datagrams, with commas between several")
	edition := flag.String("edition", "cluster", "who it says it is")
	clients := flag.Bool("client-certificates", false, "ask for the client's certificate, and take none too")
	flag.Parse()
	failed := make(chan error)
	if *secured != "" {
		server := &http.Server{
			Addr: *secured, ReadHeaderTimeout: 5 * time.Second, TLSConfig: &tls.Config{},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				fmt.Fprintf(w, `{"edition":%q,"protocol":%q,"name":%q,"body":%q}`, *edition, r.Proto, r.TLS.ServerName,
					body)
			}),
		}
		if *clients {
			server.TLSConfig.ClientAuth = tls.RequestClientCert
		}
		go func() {
			failed <- server.ListenAndServeTLS(
				filepath.Join(*certificates, "tls.crt"), filepath.Join(*certificates, "tls.key"))
		}()
	}
	for address := range strings.SplitSeq(*datagrams, ",") {
		if address != "" {
			go func() { failed <- answer(address, *edition) }()
		}
	}
	log.Fatal(<-failed)
}

// answer says each datagram back after its own name.
func answer(address, edition string) error {
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	for b := make([]byte, 64<<10); ; {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		if _, err := c.WriteTo(append([]byte(edition+" "), b[:n]...), from); err != nil {
			log.Print(err)
		}
	}
}

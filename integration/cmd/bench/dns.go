package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"time"

	"github.com/miekg/dns"
)

// dnsQuestions is how often a name is asked for, one question after the other.
const dnsQuestions = 5000

// names: how long a program waits for the address of a service of the connected namespace, beside
// one that asks CoreDNS by a plain route.
func (b *bench) names(ctx context.Context) error {
	name := "target." + namespace + ".svc.cluster.local."
	coredns, err := output(exec.CommandContext(ctx, "kubectl", "-n", "kube-system", "get", "service", "kube-dns", "-o",
		"jsonpath={.spec.clusterIP}"))
	if err != nil {
		return err
	}
	var values, plains []float64
	for range b.rounds {
		for _, side := range []struct {
			end  end
			into *[]float64
		}{{end{from: b.plain, to: net.JoinHostPort(coredns, "53")}, &plains}, {end{from: b.laptop}, &values}} {
			took, err := number(side.end.from.Command(ctx, b.program(), "dns", "--to", side.end.to, "--name", name))
			if err != nil {
				return err
			}
			*side.into = append(*side.into, took)
		}
	}
	b.figures = append(b.figures, compared("dns.local", "us", median(values), median(plains)))
	return nil
}

// dnsTime is the median time in microseconds from question to answer.
func dnsTime(to, name string) (float64, error) {
	if to == "" {
		config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil {
			return 0, fmt.Errorf("find the resolver: %w", err)
		}
		to = net.JoinHostPort(config.Servers[0], "53")
	}
	c, err := dns.Dial("udp", to)
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", to, err)
	}
	defer c.Close()
	question := new(dns.Msg).SetQuestion(name, dns.TypeA)
	var all []float64
	for range dnsQuestions {
		question.Id = dns.Id()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		start := time.Now()
		if err := c.WriteMsg(question); err != nil {
			return 0, fmt.Errorf("ask %s: %w", to, err)
		}
		answer, err := c.ReadMsg()
		if err != nil {
			return 0, fmt.Errorf("ask %s: %w", to, err)
		}
		if len(answer.Answer) != 1 {
			return 0, fmt.Errorf("%s does not know %s", to, name)
		}
		all = append(all, float64(time.Since(start).Microseconds()))
	}
	return median(all), nil
}

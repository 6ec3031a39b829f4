package intercept

import (
	"errors"
	"testing"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// What cannot be intercepted is refused, and agents stop following it.
func TestDecideRefusals(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"a session that does not exist": {
			changes: []change{func(f *facts) { f.session, f.target = nil, nil }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonSessionNotFound,
				message: "session alice does not exist: connect again", deactivate: true, requeue: settledRecheck,
			},
		},
		"a target that cannot be intercepted": {
			changes: []change{func(f *facts) {
				f.target = nil
				f.targetRefusal = &Refusal{
					Reason: detour.ReasonServiceNotFound, Message: "service catalog does not exist",
				}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonServiceNotFound,
				message: "service catalog does not exist", deactivate: true, requeue: settledRecheck,
			},
		},
		"a match that does not compile": {
			changes: []change{pending, func(f *facts) {
				f.intercept.Spec.Match = &detour.Match{
					Headers: []detour.ValueMatch{{Name: "x-dev", Type: detour.MatchRegex, Value: "("}},
				}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
			},
		},
		"a port that another session has": {
			changes: []change{pending, other("bob")},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonPortTaken, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog is intercepted by bob@mac since 2030-01-02 02:04:05 UTC " +
					"(intercept catalog-y): ask them to leave it, or take only your requests with --me or --header",
			},
		},
		"a port that another intercept of the session has": {
			changes: []change{pending, other("alice")},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonPortTaken, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog is intercepted by you since 2030-01-02 02:04:05 UTC " +
					"(intercept catalog-y): run `detour leave catalog-y` first",
			},
		},
		"a port whose global intercept another session has, personal": {
			changes: []change{pending, other("bob"), personal},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message:  "waiting for the agents of deployment/catalog (0 of 2)",
				activate: both, requeue: unsettledRecheck,
			},
		},
		"a port that a suspended intercept had": {
			changes: []change{other("bob"), func(f *facts) { f.others[0].Spec.Suspend = true }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"a damaged annotation": {
			changes: []change{func(f *facts) { f.planErr = errors.New("annotation detour.dev/agent: no port") }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
				message: "deployment/catalog: annotation detour.dev/agent: no port: remove it and try again",
			},
		},
		"a match on a UDP port": {
			changes: []change{pending, personal, func(f *facts) { f.target.port = udpPort }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
				message: "port 5353 of deployment/catalog is a UDP port, which has no requests to match: " +
					"intercept the whole port, without conditions",
			},
		},
		"a wiretap of a UDP port": {
			changes: []change{pending, mode(detour.ModeWiretap), func(f *facts) { f.target.port = udpPort }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
			},
		},
		"a Secret that the pods do not use": {
			changes: []change{pending, personal, func(f *facts) {
				f.intercept.Spec.TLS = &detour.TLS{Secret: "other"}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "the pods of deployment/catalog do not use Secret other: " +
					"name one that they use, with their certificate, by --tls-secret (the pods use none)",
			},
		},
		"a match on a port that declares TLS": {
			changes: []change{pending, personal, func(f *facts) { f.target.appProtocol = "https" }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog speaks TLS (its appProtocol is https): to select requests, " +
					"name the Secret with its certificate by --tls-secret NAME (the pods use none), " +
					"or intercept the whole port, without conditions",
			},
		},
		"all of a port that declares TLS": {
			changes: []change{func(f *facts) { f.target.appProtocol = "https" }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"a match on a port that turns out to speak TLS": {
			changes: []change{pending, personal, func(f *facts) {
				f.agents.portState = &agentv1.PortState{Port: 8080, Tls: true}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog speaks TLS (the agent tried it): to select requests, " +
					"name the Secret with its certificate by --tls-secret NAME (the pods use none), " +
					"or intercept the whole port, without conditions",
			},
		},
		"a match on a port whose certificate is of no use": {
			changes: []change{pending, personal, func(f *facts) {
				f.agents.portState = &agentv1.PortState{Port: 8080, Tls: true, Problem: "the certificate has expired"}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "the agent cannot read the requests to port 8080 of deployment/catalog: " +
					"the certificate has expired",
			},
		},
		"all of a port that turns out to speak TLS": {
			changes: []change{func(f *facts) { f.agents.portState = &agentv1.PortState{Port: 8080, Tls: true} }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
	})
}

// An intercept of an environment changes nothing in the cluster.
func TestDecideIngest(t *testing.T) {
	runDecisions(t, map[string]decisionTest{
		"ingest": {
			changes: []change{pending, mode(detour.ModeIngest), func(f *facts) { f.target.container = "app" }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, requeue: settledRecheck,
				message: "alice@mac has the environment of container app of deployment/catalog",
			},
		},
		"ingest, suspended": {
			changes: []change{mode(detour.ModeIngest), suspended, func(f *facts) { f.target.container = "app" }},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, requeue: unsettledRecheck,
				message: "nothing has changed in the cluster",
			},
		},
		"ingest, while another session has the port": {
			changes: []change{pending, mode(detour.ModeIngest), other("bob"), func(f *facts) {
				f.target.container = "app"
			}},
			want: want{phase: detour.PhaseActive, reason: detour.ReasonActive, requeue: settledRecheck},
		},
	})
}

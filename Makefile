# detour. `make` lists the targets; the two that matter are `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION  ?= v0.1.0-dev
LDFLAGS  := -s -w -X github.com/detour-dev/detour/pkg/version.Version=$(VERSION)
NODES    ?= 2
LINT     := go tool -modfile=$(CURDIR)/.ci/tools/golangci-lint/go.mod golangci-lint
BUF      := go tool -modfile=$(CURDIR)/.ci/tools/buf/go.mod buf
CLUSTER  := bin/cluster
TESTRUN  := bin/testrun

# Everything is compiled with the same settings, so that the product, the linters, the tools and the tests share the packages that
# are compiled already. Only the race detector's builds need packages of their own, and cgo.
export GOFLAGS     := $(strip $(filter-out -trimpath,$(shell go env GOFLAGS)) -trimpath)
export CGO_ENABLED := 0

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: build
build: ## the laptop binary, into bin/
	go build -ldflags '$(LDFLAGS)' -o bin/detour ./cmd/detour

.PHONY: image
image: ## the images of traffic-manager, agent and the shop example, as tarballs in bin/
	cd integration && go run ./cmd/image -root $(CURDIR) -version $(VERSION)

$(CLUSTER): FORCE
	@cd integration && go build -o ../$(CLUSTER) ./cluster/cmd/cluster
$(TESTRUN): FORCE
	@cd integration && go build -o ../$(TESTRUN) ./cmd/testrun
bin/bench: FORCE
	@cd integration && go build -o ../bin/bench ./cmd/bench
FORCE:

.PHONY: cluster-build cluster-up cluster-down cluster-status
cluster-build: $(CLUSTER) ## compile the local Kubernetes and what runs on it, unless that was done
	@echo "== the local cluster's programs (the first time they are compiled, about 25 minutes)"
	@$(CLUSTER) build
cluster-up: deps $(CLUSTER) ## start a real local Kubernetes (NODES=2) and print its kubeconfig
	@$(CLUSTER) up --nodes $(NODES)
cluster-down: $(CLUSTER) ## stop it and put the machine back
	@$(CLUSTER) down
cluster-status: $(CLUSTER) ## say what runs of it
	@$(CLUSTER) status

.PHONY: demo
demo: build ## the main job, shown on $KUBECONFIG or on a local cluster that it brings up
	@integration/demo.sh

.PHONY: test
test: deps ## everything: linters, unit tests, and the suites on a real cluster; all is compiled before the first test runs
	@$(MAKE) --no-print-directory build-unit build-suite $(if $(KUBECONFIG),,cluster-build)
	@MEANWHILE="$(MAKE) --no-print-directory lint run-unit" $(MAKE) --no-print-directory run-suite

.PHONY: build-unit build-other run-unit
build-unit: $(TESTRUN) build-other
	@echo "== compiling the unit tests with the race detector (the first time it takes about 5 minutes)"
	@CGO_ENABLED=1 $(TESTRUN) build -race -o bin/unit ./...
build-other: # cmd/detour on the platforms on which no test runs
	@for os in darwin windows; do echo "== building cmd/detour for $$os"; GOOS=$$os go build -o /dev/null ./cmd/detour; done
run-unit:
	@echo "== unit tests (race detector on)"
	@$(TESTRUN) run -p 4 -first pkg/vif bin/unit

.PHONY: test-unit
test-unit: deps ## unit tests with the race detector, and the builds for other platforms
	@$(MAKE) --no-print-directory build-unit
	@$(MAKE) --no-print-directory run-unit

# The suites need programs of their own: a static one that a person runs, and detour in other versions.
.PHONY: build-programs build-suite run-suite
build-programs: build image $(CLUSTER) bin/bench
	@cd integration && go build -o ../bin/program ./suite/testdata/program
	@cd integration && go build -o ../bin/h2spec github.com/summerwind/h2spec/cmd/h2spec
	@$(foreach v,v0.9.0 v0.1.9,go build -ldflags '$(subst $(VERSION),$v,$(LDFLAGS))' -o bin/detour-$v ./cmd/detour;)
build-suite: build-programs $(TESTRUN)
	@echo "== compiling the suites"
	@cd integration && ../$(TESTRUN) build -o ../bin/suite ./manager/... ./suite/... ./cluster/...
# Tests that call kit.Parallel wait for each other in the kit, hence -parallel.
run-suite:
	@integration/run.sh $(CURDIR)/$(TESTRUN) run -v -timeout 50m -parallel 100 bin/suite

.PHONY: test-integration
test-integration: deps ## the suites on a real cluster, which is started for them and stopped afterwards
	@$(MAKE) --no-print-directory build-suite $(if $(KUBECONFIG),,cluster-build)
	@$(MAKE) --no-print-directory run-suite

.PHONY: test-long
test-long: ## the tests of endurance for as long as users would: a minute of load, a minute without any network
	@DETOUR_LOAD=60s DETOUR_OUTAGE=60s integration/run.sh \
		go test -C integration -v -count=1 -timeout 30m -run 'TestTogether|TestConnectionsSurviveEveryPath' ./suite

.PHONY: fuzz
fuzz: ## every parser of bytes from the network on made-up input, FUZZTIME (10s) each
	@.ci/fuzz $(or $(FUZZTIME),10s)

.PHONY: bench
bench: ## measure the data path beside the plain route, on a local cluster; prints a table and writes bench/out/bench.json
	@.ci/deps wrk
	@integration/run.sh bin/bench -root $(CURDIR)

.PHONY: lint
lint: ## format, vet, linters, generated files, and go.mod up to date
	@echo "== lint (the first run builds the linter, about 4 minutes)"
	$(LINT) run ./...
	cd integration && $(LINT) run --config $(CURDIR)/.golangci.yml ./...
	.ci/comments
	go mod verify
	go mod tidy -diff
	cd integration && go mod verify && go mod tidy -diff
	.ci/generated

# Not a part of lint: the database of vulnerabilities is on the internet, and it changes without a commit.
.PHONY: vuln
vuln: ## look for known vulnerabilities in what the product calls (needs the internet)
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

.PHONY: generate
generate: ## protobuf, deepcopy, CRDs, RBAC, the reference of the commands
	cd rpc && $(BUF) generate
	go tool controller-gen object paths=./pkg/apis/...
	go tool controller-gen crd paths=./pkg/apis/... output:crd:dir=manifests/chart/definitions
	go tool controller-gen rbac:roleName=traffic-manager paths=./pkg/traffic/manager/... output:rbac:dir=manifests/chart/rbac
	go run ./docs/gen/reference
	go run ./docs/gen/notices > THIRD_PARTY_NOTICES
	go test -count=1 ./pkg/client/cli -run TestCommandsReferenceIsUpToDate -update

.PHONY: deps
deps:
	@.ci/deps

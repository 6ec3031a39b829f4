# detour. `make` lists what there is to do; the two that matter are `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VERSION  ?= v0.1.0-dev
LDFLAGS  := -s -w -X github.com/detour-dev/detour/pkg/version.Version=$(VERSION)
CACHE    ?= $(or $(DETOUR_CACHE),$(HOME)/.cache/detour)
NODES    ?= 2
LINT     := go tool -modfile=$(CURDIR)/.ci/tools/golangci-lint/go.mod golangci-lint
BUF      := go tool -modfile=$(CURDIR)/.ci/tools/buf/go.mod buf
CLUSTER  := bin/cluster

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: build
build: ## the laptop binary, into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/detour ./cmd/detour

.PHONY: image
image: ## the images of traffic-manager, agent and the shop example, as tarballs in bin/
	cd integration && go run ./cmd/image -root $(CURDIR) -version $(VERSION)

$(CLUSTER): FORCE
	@cd integration && go build -o ../$(CLUSTER) ./cluster/cmd/cluster
bin/bench: FORCE
	@cd integration && go build -o ../bin/bench ./cmd/bench
FORCE:

.PHONY: cluster-build cluster-up cluster-down cluster-status
cluster-build: $(CLUSTER) ## compile the local Kubernetes and what runs on it, unless that was done
	@echo "== the local cluster's programs (the first time they are compiled, about 15 minutes)"
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
test: deps ## everything
	@$(MAKE) --no-print-directory -j 3 --output-sync=line lint test-unit $(if $(KUBECONFIG),,cluster-build) # which wait more than they work
	@$(MAKE) --no-print-directory test-integration

# Many of the tests wait more than they work, hence -p and -parallel; those that take the longest come first.
.PHONY: test-unit
test-unit: ## unit tests with the race detector, and the builds for other platforms
	@echo "== unit tests (race detector on)"
	go test -race -count=1 -p 4 ./pkg/vif ./pkg/traffic/agent ./...
	@echo "== cmd/detour on other platforms"
	@for os in darwin windows; do echo "building for $$os"; GOOS=$$os CGO_ENABLED=0 go build -o /dev/null ./cmd/detour; done

.PHONY: test-integration
test-integration: ## the suites on a real cluster, which is started for them and stopped afterwards
	@integration/run.sh go test -C integration -v -count=1 -timeout 50m -p 1 -parallel 4 ./suite/... ./cluster/...

.PHONY: test-long
test-long: ## the tests of endurance for as long as users would: a minute of load, a minute without any network
	@DETOUR_LOAD=60s DETOUR_OUTAGE=60s integration/run.sh go test -C integration -v -count=1 -timeout 30m -run 'TestTogether|TestConnectionsSurviveEveryPath' ./suite

.PHONY: fuzz
fuzz: ## every parser of bytes from the network on made-up input, FUZZTIME (10s) each
	@.ci/fuzz $(or $(FUZZTIME),10s)

.PHONY: bench
bench: ## measure the data path beside the plain route, on a local cluster; prints a table and writes bench/out/bench.json
	@.ci/deps wrk
	@integration/run.sh bin/bench -root $(CURDIR)

.PHONY: lint
lint: ## format, vet, linters, generated files and go.mod up to date
	@echo "== lint (the first run builds the linter, about 4 minutes)"
	$(LINT) run ./...
	cd integration && $(LINT) run --config $(CURDIR)/.golangci.yml ./...
	go mod tidy -diff
	cd integration && go mod tidy -diff
	.ci/generated

.PHONY: generate
generate: ## protobuf, deepcopy, CRDs, RBAC
	cd rpc && $(BUF) generate
	go tool controller-gen object paths=./pkg/apis/...
	go tool controller-gen crd paths=./pkg/apis/... output:crd:dir=manifests/chart/definitions
	go tool controller-gen rbac:roleName=traffic-manager paths=./pkg/traffic/manager/... output:rbac:dir=manifests/chart/rbac

.PHONY: deps
deps:
	@.ci/deps

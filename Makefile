# ovnet: every target starts on a fresh Debian 12 or 13 (as root); see `make help`.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# make test-unit ARGS='-k lease -x'
ARGS ?=

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo DOCKER=1      the demo with real dockerd on both hosts"
	@echo "  make demo STORY=1       all backends, and what each puts on the wire"
	@echo "  make fuzz ROW='program=...'  one packet again, as the fuzzer has printed it"
	@echo "  make chaos SCENARIO=bridge SECONDS=60   some scenarios, for a minute"
	@echo "  make test-unit ARGS='-k lease -x'"

.PHONY: setup
setup: ready ## install what is missing (Debian packages, .venv); quick when all is there
	@echo "ready: make demo, make test"

.PHONY: setup-run
setup-run: ## only what a node needs, for a real host
	@scripts/setup.sh run

.PHONY: ready
ready:
	@scripts/setup.sh

.PHONY: demo
demo: ready ## two hosts, containers, the registry story, in under two minutes (root)
	@$(BIN)/python -m tests.demo $(if $(DOCKER),--docker) $(if $(STORY),--story)

.PHONY: test
test: lint ## lint, then all rings of tests beside one another, and alone what measures (root)
	@$(BIN)/python -m tests.rings $(if $(ARGS),-- $(ARGS))

.PHONY: test-quick
test-quick: lint ## lint, unit, bpf and a few tests of netns: the inner loop (root)
	@$(BIN)/python -m tests.rings --quick $(if $(ARGS),-- $(ARGS))

RINGS := unit bpf netns conformance chaos fuzz bench
.PHONY: $(addprefix test-,$(RINGS))
test-unit: ## one ring: pure functions, no root
test-bpf: ## one ring: the programs on single packets
test-netns: ## one ring: hosts in network namespaces
test-conformance: ## one ring: against independent peers
test-chaos: ## one ring: each scenario once, short
test-fuzz: ## one ring: random input
test-bench: ## one ring: short measurements
$(addprefix test-,$(RINGS)): test-%: ready
	@$(BIN)/python -m tests.rings $* $(if $(ARGS),-- $(ARGS))

.PHONY: lint
lint: ready ## ruff, mypy --strict, import directions
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: ready ## let ruff put the code in form
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

.PHONY: bench
bench: ready ## every path side by side, and docs/performance.md; 30 minutes, QUICK=1: 8 (root)
	@$(BIN)/python -m tests.bench $(if $(QUICK),--quick) $(ARGS)
	@$(BIN)/python -m tests.bench.document

.PHONY: kernels
kernels: ready ## the bpf ring and two nodes on Debian's 6.1 and 6.12, in emulation: an hour or two (root)
	@scripts/setup.sh kernels
	@$(BIN)/python -m tests.kernels $(ARGS)

.PHONY: distros
distros: ready ## demo and tests on fresh systems of Debian 12, 13 and forky: ten minutes each (root)
	@scripts/setup.sh distros
	@$(BIN)/python -m tests.distros $(ARGS)

PACKETS ?= 10000000
.PHONY: fuzz
fuzz: ready ## random packets through every program: PACKETS=10000000 SEED=1 FAMILY=6 (root)
	@$(BIN)/python -m tests.fuzz $(if $(ROW),replay '$(ROW)',$(if $(FAMILY),--family $(FAMILY)) $(PACKETS) $(SEED))

.PHONY: chaos
chaos: ready ## what goes wrong on a node, under traffic, every packet counted (root)
	@$(BIN)/python -m tests.chaos $(if $(SCENARIO),--only '$(SCENARIO)') $(if $(SECONDS),--seconds $(SECONDS)) $(ARGS)

BATCHES ?= 1000
.PHONY: fuzz-pair
fuzz-pair: ready ## random packets through two nodes, with eBPF and without: BATCHES=1000 SEED=1 (root)
	@$(BIN)/python -m tests.fuzz.pair $(BATCHES) $(SEED)

# make soak HOURS=0.1
HOURS ?= 1
.PHONY: soak
soak: ready ## churn and faults for HOURS; memory, descriptors and entries must be flat (root)
	@$(BIN)/python -m tests.soak --hours $(HOURS) $(ARGS)

.PHONY: deb deb-test image image-test dist
deb: ready ## the Debian package, dist/ovnet_VERSION_all.deb
	@scripts/setup.sh dist
	@scripts/deb.sh

deb-test: ready ## the Debian package in fresh bookworm and trixie, under traffic; ten minutes (root)
	@scripts/setup.sh dist
	@$(BIN)/python -m tests.debian $(ARGS)

image: ready ## the container image ovnet:VERSION, and dist/ovnet-VERSION.image.tar (root)
	@scripts/setup.sh dist
	@scripts/image.sh

image-test: image ## two nodes from the image, with dockerd, under traffic (root)
	@$(BIN)/python -m tests.image

dist: ready ## all of a release: sdist, wheel, deb, image, SHA256SUMS (root)
	@scripts/setup.sh dist
	@scripts/dist.sh

.PHONY: clean
clean: ## remove what dead labs left (namespaces, pins), caches and .venv
	@if [ -x $(BIN)/python ] && [ "$$(id -u)" = 0 ]; then $(BIN)/python -m tests.lab clean; fi
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find bpf ctl metrics tests -name __pycache__ -type d -prune -exec rm -rf {} +

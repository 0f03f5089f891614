# The ways into the project. Each target prepares what it needs.

# What a CI machine must be able to do: there a test that needs one of these fails instead of being skipped.
# Elsewhere `quicferry doctor` says what this machine can do, and the rest is skipped with its reason.
CI_REQUIRES := root,netns,veth,shaped-link,mininet,criu,criu-lazy-pages,criu-page-server,oci,oci-lazy-pages,podman,rsync,tcpdump,tshark,mptcp,dns
PYTHON := .venv/bin/python
PYTEST_ARGS ?=
PYTEST = $(PYTHON) -m pytest --durations=15 --require="$(1)"
# What needs no network of its own runs on all cores; then the real runs, one after another. What failed runs
# once more, alone: on a machine that others load too, a real clock can come late once. What fails on a clock of
# its own, or for a reason, fails again; what then passes is printed with how it failed (docs/testing.md).
ONCE_MORE = if [ $$now -eq 1 ]; then echo "== what failed, once more and alone"; \
	$(PYTEST) --last-failed --last-failed-no-failures none -m "$(2)" && echo "== UNSTABLE: passed the second time only, see above"; now=$$?; fi; \
	[ $$now -eq 0 ] || status=1
ifeq ($(PYTEST_ARGS),)
TESTS = status=0; \
	$(PYTEST) -n auto --maxprocesses 8 -m "not e2e"; now=$$?; $(call ONCE_MORE,$(1),not e2e); \
	$(PYTEST) -m e2e; now=$$?; $(call ONCE_MORE,$(1),e2e); exit $$status
else
TESTS = $(PYTEST) $(PYTEST_ARGS)
endif
BENCH_ARGS ?=
SOAK_ARGS ?=
FAULTS_ARGS ?=
FIG5_REPETITIONS ?= 3
FIG6_REPETITIONS ?= 1
FIGURES_RUNS ?= runs/figures
SIGNALS_ARGS ?=
PROCESS_FAULTS_ARGS ?=
STEPS ?=
VM_ARGS ?=
CONTAINER_ARGS ?=
COUNT ?= 100
SEED ?= 1
MINUTES ?=
SECONDS ?= 60
FUZZ_ARGS ?=
# a number that no night had before; of the makefile's own, so that all steps of a night share it
NIGHT_SEED ?= $(shell date +%Y%m%d%H%M)
NIGHT_SEEDS ?= 10000
NIGHT_MINUTES ?= 60
NIGHT_SECONDS ?= 60
NIGHT_CELLS ?= 40
NIGHT_STEPS ?= simulate models explore fuzz matrix
SEEDS ?= 1000
WORLD ?= protocol ownership
SIMULATE_ARGS ?=
ONE_LOSS_ARGS ?=
# the programs of root, for those who became root by `su` and kept their own PATH
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-report test-upstream simulate one-loss requirements lint bench bench-inspect fidelity figures soak faults bench-containers bench-hosts bench-cost bench-overhead vm-test vagrant-test container-test signals process-faults explore fuzz nightly lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install everything this needs (Debian 12 or 13, Ubuntu 24.04; as root)
	@provision/setup.sh

demo: setup ## move a live QUIC server once with each strategy and show the result (as root)
	@bin/quicferry demo

test: setup ## run all tests this machine can run (installs Podman for those of podman-…)
	@provision/podman.sh
ifeq ($(CI),true)
	@$(call TESTS,$(CI_REQUIRES))
else
	@$(call TESTS,$$(bin/quicferry doctor --require-list))
endif

test-report: setup ## open a report in headless Chromium (apt installs it: 434 MB) and use it
	@command -v chromium >/dev/null || apt-get install -y --no-install-recommends chromium
	@$(PYTHON) -m pytest --browser tests/browser $(PYTEST_ARGS)

test-upstream: setup ## run aioquic's own tests on our connection, extension off
	@$(PYTHON) tools/test_upstream.py

simulate: setup ## play SEEDS=1000 drawn stories of each WORLD in virtual time, on all cores
	@status=0; for world in $(WORLD); do \
	  $(PYTHON) -W ignore -m simulation --world $$world --seeds $(SEEDS) $(SIMULATE_ARGS) || status=1; \
	done; exit $$status

one-loss: setup ## lose any one datagram: each of every strategy, traffic, first speaker and one to three moves
	@$(PYTHON) -W ignore -m simulation.one_loss $(ONE_LOSS_ARGS)

requirements: setup ## print which sentence of the specifications is kept where, and which test shows it
	@$(PYTHON) tools/requirements.py

lint: setup ## check form, types and the direction of imports
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: setup ## measure the targets and print them as a table (as root)
	@$(PYTHON) -m bench.bench_migration $(BENCH_ARGS)
	@$(PYTHON) -m bench.bench_notification
	@$(PYTHON) -m bench.throughput
	@$(PYTHON) -m bench.endpoint
	@$(PYTHON) -m bench.idle

bench-inspect: setup ## measure `quicferry inspect` against tshark on 100,000 packets (10 minutes)
	@$(PYTHON) -m bench.bench_inspect

fidelity: setup ## measure whether links do what they are asked to, and write docs/fidelity.md (as root, 3 minutes)
	@$(PYTHON) -m bench.fidelity --write docs/fidelity.md $(FIDELITY_ARGS)

figures: setup ## run the paper's Fig. 5a three times and 6a once, and write docs/images (as root, 18 minutes; docs/reproduce.md)
	@bin/quicferry reproduce fig5a --repetitions $(FIG5_REPETITIONS) --runs $(FIGURES_RUNS) --output docs/images $(FIGURES_ARGS)
	@bin/quicferry reproduce fig6a --repetitions $(FIG6_REPETITIONS) --runs $(FIGURES_RUNS) --output docs/images $(FIGURES_ARGS)

bench-hosts: setup ## measure how long networks of 10, 100, … hosts take to be there (as root)
	@$(PYTHON) -m bench.bench_hosts $(BENCH_ARGS)

bench-cost: setup ## write docs/performance.md: what things cost as they grow (as root, 40 minutes)
	@$(PYTHON) -m bench.bench_cost --write docs/performance.md $(BENCH_ARGS)

bench-overhead: setup ## measure what a run costs besides its load, with and without a kept network (as root, 3 minutes)
	@$(PYTHON) -m bench.bench_overhead $(BENCH_ARGS)

bench-containers: setup ## measure containers, ours beside the published procedure (as root, half an hour)
	@provision/podman.sh
	@$(PYTHON) -m bench.bench_containers $(BENCH_ARGS)

soak: setup ## move one connection 200 times to and fro and look for leaks (as root, 10 minutes)
	@$(PYTHON) -m bench.soak $(SOAK_ARGS)

faults: setup ## perform every fault with every engine and strategy (as root, an hour)
	@$(PYTHON) -m bench.fault_matrix $(FAULTS_ARGS)

vm-test: setup ## run STEPS (all) in a virtual machine whose kernel has netem and soft-dirty (as root; see docs/vagrant.md)
	@for program in qemu-system-x86_64 qemu-img debootstrap mke2fs; do command -v $$program >/dev/null || \
	  { apt-get install -y --no-install-recommends qemu-system-x86 qemu-utils debootstrap e2fsprogs && break; } || exit 1; done
	@$(PYTHON) provision/vm/vm_test.py $(foreach step,$(STEPS),--only $(step)) $(VM_ARGS)

vagrant-test: setup ## start the Vagrantfile's machine by Vagrant and libvirt from a box made here, and move a server in it (as root)
	@for program in vagrant libvirtd virsh dnsmasq qemu-system-x86_64 qemu-img debootstrap mke2fs; do command -v $$program >/dev/null || \
	  { apt-get install -y --no-install-recommends vagrant vagrant-libvirt libvirt-daemon-system libvirt-clients \
	    dnsmasq-base qemu-system-x86 qemu-utils debootstrap e2fsprogs && break; } || exit 1; done
	@provision/vm/vagrant_test.sh

container-test: setup ## build the Containerfile and move servers in it by Podman (as root; CONTAINER_ARGS=--host-files builds nothing)
	@command -v podman >/dev/null || apt-get install -y --no-install-recommends podman
	@provision/container/container_test.sh $(CONTAINER_ARGS)

signals: setup ## end the tool by each signal at each moment and look for what is left (as root, 5 minutes)
	@$(PYTHON) -m bench.signals $(SIGNALS_ARGS)

process-faults: setup ## kill and stop each process of a run, before, during and after a move (as root, 15 minutes)
	@$(PYTHON) -m bench.process_faults $(PROCESS_FAULTS_ARGS)

explore: setup ## draw COUNT command lines (SEED, MINUTES), run and judge them (as root, 10 s each)
	@$(PYTHON) -m proof.explore --count $(COUNT) --seed $(SEED) $(if $(MINUTES),--minutes $(MINUTES))

fuzz: setup ## give every decoder bytes that nobody thought of, SECONDS each
	@$(PYTHON) -m proof.fuzz --seconds $(SECONDS) $(FUZZ_ARGS)

nightly: setup ## a night's proof with a fresh NIGHT_SEED, which it prints (as root, three hours)
	@$(PYTHON) -m proof.nightly --seed $(NIGHT_SEED) --seeds $(NIGHT_SEEDS) --minutes $(NIGHT_MINUTES) \
	  --seconds $(NIGHT_SECONDS) --cells $(NIGHT_CELLS) $(NIGHT_STEPS)

lock: ## make requirements.lock again from pyproject.toml
	@tools/lock.sh

clean: ## remove what interrupted runs left behind, and caches; keeps runs/ and .venv
	@if [ -x $(PYTHON) ]; then bin/quicferry clean; fi
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

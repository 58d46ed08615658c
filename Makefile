# Everything here works from a plain clone: the first target asked for makes .venv and installs what this machine lacks.
.DEFAULT_GOAL := help
.PHONY: help venv tools demo helm test cluster-build cluster cluster-down cluster-test check format bench bench-cluster bench-parts simulate faults soak release-check docs clean

VENV := .venv
BIN := $(VENV)/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.ready ## the Python environment in .venv, for `. .venv/bin/activate`

$(VENV)/.ready: pyproject.toml .ci/python
	$$(.ci/python) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable . --group dev --group bench
	@touch $@

tools: ## the Debian packages that demo and tests use as real parts (needs root; says what is skipped without)
	@.ci/tools

demo: venv tools ## the main job on this machine: a registry, a tracker, four agents, everyone pulls at once
	@$(BIN)/python -m bench.demo $(ARGS)

helm: venv # for a person; the tests build it by themselves where Go is
	@command -v helm >/dev/null || $(BIN)/python -m tests.parts.kubecluster.binaries helm

test: venv tools ## all tests; ARGS='-k containerd' for some of them, SHOAL_CLUSTER=0 without those on a real Kubernetes
	@$(BIN)/python -m pytest $(ARGS)

cluster-build: venv tools ## Kubernetes, compiled once from pinned Go modules and kept (needs Go; about 15 minutes on two cores)
	@$(BIN)/python -m tests.parts.kubecluster.binaries

cluster: cluster-build ## a real Kubernetes on this machine: three nodes, the chart, an image pulled by a pod on each (root)
	@$(BIN)/python -m tests.parts.kubecluster up

cluster-down: venv ## away with what `make cluster` started
	@$(BIN)/python -m tests.parts.kubecluster down

cluster-test: venv tools ## the tests on a real cluster alone, the long ones too (root)
	@SHOAL_CLUSTER_LONG=1 $(BIN)/python -m pytest -m needs_cluster $(ARGS)

bench-cluster: venv tools ## a tracker beside a real API server with 1,000 and 5,000 nodes of kwok (root; ARGS='1000' for one size, --without-restart)
	@$(BIN)/python -m tests.parts.kubecluster.binaries kwok helm kube
	@$(BIN)/python -m tests.parts.kubecluster.scale $(ARGS)

check: venv ## ruff, formatting, mypy --strict, layers, dead code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/vulture

format: venv ## put the code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: venv tools ## a shaped cluster on this machine, Shoal beside the alternatives (root; ARGS='--nodes 4 --size 16MiB')
	@$(BIN)/python -m bench $(ARGS)

bench-parts: venv tools ## single parts: hashing, boards, announces, hit path, pytest-benchmark's table
	@$(BIN)/python -m pytest bench --benchmark-only --benchmark-columns=min,median,max,ops,rounds $(ARGS)

simulate: venv ## the hand-out for up to 10,000 nodes, on simulated time (ARGS='--nodes 1000 --scene cold warm')
	@$(BIN)/python -m bench.simulate $(ARGS)

faults: venv tools ## faults done to real clusters, and what was seen (root; ARGS='-k D8' for some, --quick, --list)
	@$(BIN)/python -m bench.faults $(ARGS)

soak: venv tools ## an hour of pulls, kills and cuts (root; ARGS='--seconds 600 --seed 7')
	@$(BIN)/python -m bench.faults.soak $(ARGS)

release-check: venv tools ## what of a release can be tried here: versions, workflows, a build twice, the chart's push
	@.ci/release-check $(ARGS)

docs: venv ## docs/settings.md and docs/metrics.md, made from the code
	@$(BIN)/python -m tests.house.test_docs
	@$(BIN)/python -m tests.house.test_docs_metrics

clean: ## away with .venv and every cache
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks build dist *.egg-info

# `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
# Which build of torch: cpu, or cuda for NVIDIA GPUs (several GB more); once installed, the one that is there.
TORCH ?= $(if $(wildcard $(VENV)/.run-cuda),cuda,cpu)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_INDEX := https://download.pytorch.org/whl/cpu
# Kubernetes' own kinds.
KUBERNETES := 1.34.0
# KubeRay's own, where they lie beside the checkout.
RAY_SCHEMAS := ../shared/schemas
MANIFESTS := $(filter-out %/kustomization.yaml,$(wildcard infra/kubernetes/*.yaml infra/kubernetes/*/*.yaml))
CORE_MANIFESTS := $(foreach file,$(MANIFESTS),$(if $(filter ray%,$(notdir $(file))),,$(file)))
# Two at a time: many tests wait for servers. A file's tests share what is dear to make, and stay together.
PYTEST_ALL := pytest --numprocesses 2 --dist loadfile
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

run: install ## train, evaluate and promote a model on the built-in shapes
	unet shapes data/raw/shapes --count 400
	unet add
	dvc repro
	unet promote
	unet summary

install: $(VENV)/.run-$(TORCH) ## make the virtual environment with pinned dependencies (TORCH=cpu or cuda)

install-dev: $(VENV)/.dev ## the same with the tools for tests and checks

$(VENV)/.run-$(TORCH): constraints.txt pyproject.toml
	@case "$(TORCH)" in cpu|cuda) ;; *) echo "TORCH=$(TORCH): choose cpu or cuda"; exit 2 ;; esac
	@other=$$(ls $(VENV)/.run-* 2>/dev/null | grep -v -e '-$(TORCH)$$' || true); test -z "$$other" \
	  || { echo "$(VENV) has another build of torch ($$other). Remove $(VENV), then run make again."; exit 2; }
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(MAKE) --no-print-directory torch-$(TORCH)
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.run-$(TORCH)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# A CPU build that pip finds by its own settings is taken first; the second line asks PyTorch's index for it.
torch-cpu:
	if [ "$$(uname)" = Darwin ]; then $(PIP) install --quiet torch==$(TORCH_VERSION); \
	else $(PIP) install --quiet torch==$(TORCH_VERSION)+cpu 2>/dev/null \
	  || $(PIP) install --quiet torch==$(TORCH_VERSION)+cpu --extra-index-url $(TORCH_INDEX); fi

torch-cuda:
	$(PIP) install --quiet torch==$(TORCH_VERSION)

test: install-dev ## all tests but those of cluster and chaos
	$(PYTEST_ALL)

test-fast: install-dev ## the tests that start no servers or clusters
	$(PYTEST_ALL) -m 'not slow and not cluster and not chaos'

cluster: install-dev ## the tests on several hosts (network namespaces; as root, on Linux)
	pytest -m cluster tests/cluster

chaos: install-dev ## kill processes and servers, also at random moments (CHAOS_SEED, CHAOS_KILLS, CHAOS_AWAY_SECONDS)
	pytest -m chaos -s

check: check-infra ## format, lint, types, layers, manifests
	ruff format --check .
	ruff check .
	mypy
	lint-imports

check-infra: install-dev ## only the manifests: image, compose, Kubernetes, workflows
	yamllint --strict .
	hadolint infra/Dockerfile
	check-jsonschema --builtin-schema vendor.compose-spec infra/compose*.yaml
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	actionlint
	kubernetes-validate --strict --quiet --kubernetes-version $(KUBERNETES) $(CORE_MANIFESTS)
	@test -d $(RAY_SCHEMAS) || echo "no $(RAY_SCHEMAS) here: the manifests of Ray's kinds are not checked"
	for kind in $(notdir $(wildcard $(RAY_SCHEMAS)/ray*.v1.json)); do \
	  check-jsonschema --schemafile $(RAY_SCHEMAS)/$$kind $$(find infra/kubernetes -name $${kind%.v1.json}.yaml) || exit; done
	@if kubectl version --client --output=json 2>/dev/null | grep -qE '"minor": "(2[1-9]|[3-9][0-9])'; then \
	  for variant in cpu gpu; do kubectl kustomize infra/kubernetes/$$variant >/dev/null || exit; done; \
	else echo "no kubectl (1.21 or newer) here: the variants for CPUs and GPUs are not rendered"; fi

fmt: install-dev ## format and mend what can be mended
	ruff format .
	ruff check --fix .

ui: install ## MLflow's pages on this machine, at http://127.0.0.1:5000
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port 5000

servers: install-dev ## PostgreSQL, MLflow with passwords and an S3 store on this machine, to try out; nothing is kept
	python -m infra.servers

.PHONY: help run install install-dev torch-cpu torch-cuda test test-fast cluster chaos check check-infra fmt ui servers

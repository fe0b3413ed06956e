# make install   everything into .venv (no root, nothing global)
# make demo      a GUI agent's branches on a real server, full cache against STaR-KV
# make demo-browser  branches in a real browser on a real server, and where their time goes; needs Chromium
# make test      what CI runs: lint, types, all tests that need no GPU
# make test-seams  what of SGLang is relied on, against the installed SGLang or SGLANG=FOLDER, without starting it
# make soak      half an hour of load on a real server
# make check-wheel  the bare wheel in a fresh environment beside SGLang: it brings nothing else, and serves
# make docs      the documentation as a site in build/site; make docs-serve shows it while it is written
# make newcomer  a fresh clone, and the commands of README and docs/ that need a server, as they stand, on a CPU
# make dist      wheel and source distribution
# make test-gpu  the tests that need an NVIDIA GPU, GPU_JOBS at a time over all GPUs; PYTHON=... names an interpreter that has SGLang

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv/bin
PYTHON ?= $(VENV)/python
GPU_JOBS ?= 4
TREE := build/tree

.PHONY: install demo demo-browser lint format types test test-nightly test-seams test-gpu soak docs docs-serve newcomer tree wheel dist check-wheel clean

install:
	@PYTHON=$(if $(filter command line environment,$(origin PYTHON)),$(PYTHON),) bash scripts/install.sh

demo: install
	$(VENV)/python examples/demo.py

demo-browser: install
	bash scripts/install_browser.sh
	$(VENV)/python examples/demo_browser.py

lint: install
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .

format: install
	$(VENV)/ruff check --fix .
	$(VENV)/ruff format .

tree:
	@$(if $(wildcard $(PYTHON)),$(PYTHON),python3) scripts/link_tree.py $(TREE)

types: install tree
	$(VENV)/mypy

# Two processes: Triton reads TRITON_INTERPRET when it is imported, and SGLang imports it too. With a thread for each
# core in every worker and in every engine, most of the time goes to threads that wait for each other.
test: export OMP_NUM_THREADS := 1
test: lint types
	bash scripts/install_browser.sh
	TRITON_INTERPRET=1 $(VENV)/python -m pytest -n 2 tests/ops
	$(VENV)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/ops

test-nightly: install
	TRITON_INTERPRET=1 HYPOTHESIS_PROFILE=nightly $(VENV)/python -m pytest -m 'not gpu' tests/ops
	HYPOTHESIS_PROFILE=nightly $(VENV)/python -m pytest -m 'not gpu' --ignore=tests/ops

# What of SGLang this project extends or reads, against the source of an SGLang that is neither imported nor started.
# SGLANG=FOLDER names another one's package, such as an unpacked wheel's sglang/.
test-seams: install
	$(VENV)/star-kv doctor --sglang $(or $(SGLANG),$(wildcard .venv/lib/python3*/site-packages/sglang))
	$(VENV)/python -m pytest tests/patches

# Without a limit every process takes all processors for its float32 references, and all of them wait.
test-gpu: tree
	OMP_NUM_THREADS=2 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(TREE)$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m pytest -m gpu -n $(GPU_JOBS) --dist loadgroup --no-loadscope-reorder

# 30 minutes: agents that abort, hang up and wait for room on a real server, then what they did one by one.
soak: install tree
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(TREE):$(CURDIR)/$(TREE)/examples $(VENV)/python -m tests.soak.run_soak --out out/soak

docs: install
	$(VENV)/python scripts/docs_parts.py --check
	NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs build --strict --quiet

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/mkdocs serve

newcomer: install
	$(VENV)/python scripts/newcomer.py

dist: install
	rm -rf build/lib build/bdist.* dist
	$(VENV)/python -m build --no-isolation --outdir dist

wheel: install
	rm -rf build/lib build/bdist.*
	$(VENV)/python -m build --wheel --no-isolation --outdir dist

# A fresh environment with SGLang and the bare wheel, and nothing else of ours: what it brings, and that it serves.
check-wheel: wheel
	bash scripts/check_wheel.sh

clean:
	rm -rf .venv .uv-cache build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# Every target makes the environment it needs, once, in $(VENV).
# PYTHON=python3.12 make demo   uses another interpreter (3.11 or newer).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two test processes, each single-threaded: oversubscribed threads are many times slower.
TEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

.PHONY: help demo demo-policy bench docs test test-all test-app test-cluster test-gpu lint format clean

help:
	@echo "make demo      pretrain a small Pixio on rendered scenes, probe it for depth (minutes, no GPU, no data)"
	@echo "make demo-policy  the same backbone as the eyes of a robot arm in Meta-World (more minutes)"
	@echo "make bench     every measurement of speed, beside other libraries (ten minutes)"
	@echo "make docs      the documentation as a site: docs/_build/index.html"
	@echo "make test      the tests but the slow ones"
	@echo "make test-all  all tests but those of test-cluster"
	@echo "make test-cluster  those on a real SLURM, on two hosts and on Ray, which it installs (root, Debian)"
	@echo "make test-gpu  those that need an NVIDIA GPU"
	@echo "make test-app  those that drive the page of pixio app in a browser, which it installs (root, Debian)"
	@echo "make lint      ruff and mypy"
	@echo "make format    let ruff rewrite the code"

demo: $(VENV)/.installed
	$(BIN)/pixio fit -c pretrain/demo
	$(BIN)/pixio bench benchmarks/demo.yaml
	@echo "the table as a page, and pictures to look at: runs/bench/demo/index.html, runs/pretrain/demo/panels"
	@$(BIN)/python -c "import gradio" 2> /dev/null || echo "for the next line: $(BIN)/pip install -e '.[app]'"
	@echo "your own pictures, in the browser: $(BIN)/pixio app"

demo-policy: $(VENV)/.installed-policy
	$(BIN)/pixio fit -c pretrain/demo
	$(BIN)/pixio bench benchmarks/policy_metaworld_demo.yaml
	$(BIN)/pixio bench benchmarks/policy_metaworld_demo.yaml --out runs/bench/policy_metaworld_bin_picking --data.task=bin-picking-v3

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build
	@echo "docs/_build/index.html"

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/speed.py --peers $(VENV)/peers

test: $(VENV)/.installed-dev
	$(TEST) -m "not slow and not gpu"

test-all: $(VENV)/.installed-dev
	$(TEST) -m "not cluster and not browser and not gpu"

# One process: they share the machine's two cores and one SLURM.
test-cluster: $(VENV)/.installed-cluster
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster

test-gpu: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m gpu -n 4 -v

# One process, for one browser.
test-app: $(VENV)/.installed-app
	OMP_NUM_THREADS=1 $(BIN)/pytest -m browser

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs docs/_build .pytest_cache .ruff_cache .mypy_cache

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'pixio needs Python 3.11 or newer: PYTHON=python3.12 make')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

# MuJoCo draws through a system library; with MUJOCO_GL set, through the one that is there.
$(VENV)/.installed-policy: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[policy,video]'
	@$(BIN)/python -c "from pixio_heads.policy.metaworld import opengl; opengl()" 2> /dev/null \
	  || { if [ "$$(id -u)" = 0 ]; then root=; else root=sudo; fi; \
	    $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends libosmesa6; } \
	  || { echo "demo-policy draws through libosmesa6, which apt-get could not install: install it by hand, then make demo-policy"; exit 1; }
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/peers -r benchmarks/peers.txt
	touch $@

$(VENV)/.installed-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt 'ray[data]>=2.40'
	@if [ "$$(id -u)" = 0 ]; then root=; else root=sudo; fi; \
	  { $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge iproute2 && touch $@; } \
	  || echo "apt-get could not install slurmctld slurmd slurm-client munge iproute2: tests that need them are skipped"

$(VENV)/.installed-app: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt playwright axe-playwright-python
	@if [ "$$(id -u)" = 0 ]; then root=; else root=sudo; fi; \
	  { command -v chromium > /dev/null || { $$root apt-get update -qq && $$root apt-get install -y -qq --no-install-recommends chromium; }; } && touch $@ \
	  || echo "apt-get could not install chromium: tests that need it are skipped"

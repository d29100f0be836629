# make sweep     environment, installation, and the main job: prompts to out/sweep/report.html
# make reproduce the paper's tables and figures on the mini models: out/paper/report.html
# make quick     the fast core of the tests, under a minute: no trained weights, no Ray, no other process
# make test      the tests that run everywhere; make test-all adds the slow ones; make check adds ruff and mypy
# make chaos     a sweep under 200 random kills, an S3 that fails and flipped bits: 20 minutes or more
# make docs      the documentation as a site: out/docs/index.html
# The first that runs and is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN = OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/python

QUICK = $(addprefix tests/contract/test_, every_family.py mechanisms.py) \
	$(addprefix tests/method/test_, arguments.py backbones.py cost.py loading.py plan.py planfile.py sampling.py) \
	$(addprefix tests/pipeline/test_, coco.py fidelity.py kernel.py metric_table.py metrics.py prompts.py shapes.py status.py tables.py)

.PHONY: sweep reproduce quick test test-all check chaos docs install

sweep: install
	$(RUN) jobs/coco_sweep.py $(ARGS)

reproduce: install
	$(RUN) jobs/reproduce.py all $(ARGS)

quick: install
	$(RUN) -m pytest -q --quick $(QUICK)

# In two halves: what computes in one thread runs on two cores at once, what starts Ray has both to itself. Of
# tests/pipeline the first half are the files without these words; one that starts Ray there fails (tests/conftest.py).
STARTS = ray_session|import ray|workers|subprocess|Popen|Cluster|browser|main\b|evaluate\b
test: install
	$(RUN) -m pytest -q $(SLOW) -n 2 --dist loadfile tests/method tests/contract $$(grep -LE "$(STARTS)" tests/pipeline/test_*.py); \
	computes=$$?; \
	$(RUN) -m pytest -q $(SLOW) $$(grep -lE "$(STARTS)" tests/pipeline/test_*.py) tests/jobs tests/chaos tests/test_*.py && \
	exit $$computes

test-all: SLOW = -m "slow or not slow"
test-all: test

check: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(MAKE) test

chaos: install
	$(RUN) tests/chaos/chaos.py $(ARGS)

docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -f docs/mkdocs.yml

install: $(VENV)/installed

# torch and torchvision first and pinned: a range takes a build that does not fit the other.
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: python must be 3.11 or later, found none: make install PYTHON=FILE" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q torch==2.14.1 torchvision==0.29.1
	$(VENV)/bin/pip install -q -e ".[pipelines,dashboard,test,docs]"
	touch $@

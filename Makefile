# The commands of the project. Each first creates or updates .venv.

PYTHON ?= python3
EXTRAS ?=
ARGS ?=
DATA ?=

VENV := .venv
BIN := $(VENV)/bin
# Two lines: this folder, because a moved environment does not work, and the installed extras.
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.unfinished

empty :=
space := $(empty) $(empty)
comma := ,

known := baselines bench cuda cuda12 cuda13 dev docs formats peers slurm
unknown := $(filter-out $(known),$(subst $(comma), ,$(EXTRAS)))
$(if $(unknown),$(error EXTRAS: unknown $(unknown); known are $(known)))
WITH ?=
wanted := core $(subst $(comma), ,$(WITH))
installed := $(shell $(BIN)/python -c '' 2>/dev/null && [ "$$(sed -n 1p $(STAMP) 2>/dev/null)" = "$(CURDIR)" ] && sed -n 2p $(STAMP))
# Installed together with the extras that are already there, so that pip finds versions that fit all of them.
extras := $(sort $(filter-out core,$(installed) $(wanted)))

venv = $(MAKE) --silent --no-print-directory $(STAMP) WITH="$(strip $(1) $(EXTRAS))"

.DEFAULT_GOAL := help
.PHONY: help run paper test lint types docs bench constraints FORCE

help: ## list the targets
	@echo "make TARGET [EXTRAS=...] [ARGS=...] [PYTHON=...] [DATA=...]"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  EXTRAS=cuda      for a machine with an NVIDIA GPU; bench adds PyTorch and VoxelMorph; baselines adds SyN and SimpleITK"
	@echo "  EXTRAS=cuda12    the same for an older driver"
	@echo "  EXTRAS=formats   adds SimpleITK and pydicom, for DICOM, NRRD, MHA and transforms as .h5"
	@echo "  EXTRAS=peers     adds SyN, greedy and convexAdam, for make bench ARGS=--what=registration"
	@echo "  EXTRAS=slurm     adds submitit, for make paper ARGS=--slurm"
	@echo "  ARGS=\"...\"       arguments of the command, as in make run ARGS=\"--config.train.steps=10\""
	@echo "  PYTHON=python3   the Python that creates .venv; 3.11 or newer"

run: ## train F3RNet-MRB on the phantom and evaluate it, in runs/mrb
	@$(venv)
	$(BIN)/python -m f3r_jax.main --config=configs/mrb.py $(ARGS)

paper: ## make the paper's tables and figures on the phantom, in hours; with DATA=/path at the paper's size on your pairs
	@$(call venv,baselines)
	$(BIN)/python launch/paper.py $(if $(DATA),--output=runs/paper_own "--data=$(DATA)") $(ARGS)

test: ## run the tests; EXTRAS=bench adds the comparisons with PyTorch
	@$(call venv,dev)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: ## check format, style and types
	@$(call venv,dev)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

types: ## check types only, with mypy
	@$(call venv,dev)
	$(BIN)/mypy

docs: ## build the documentation site in build/site
	@$(call venv,docs)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs/mkdocs.yml $(ARGS)

bench: ## measure time and memory, compare with PyTorch and VoxelMorph, write BENCHMARKS.md; resumes if interrupted
	@$(call venv,bench)
	$(BIN)/python -m f3r_jax.benchmark $(if $(findstring --what,$(ARGS)),,--suite) --markdown=BENCHMARKS.md $(ARGS)

constraints: ## write constraints.txt with the newest versions
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; trap 'exit 130' INT TERM; \
	echo "resolving the newest versions in a new environment"; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check \
	  --upgrade setuptools "$$(grep '^torch==' constraints.txt)" --editable '.[dev,bench,baselines,formats,peers,slurm,docs]'; \
	{ sed '/^[^#]/,$$d' constraints.txt; \
	  "$$folder/venv/bin/python" -m pip list --format=freeze --disable-pip-version-check --exclude pip --exclude f3r_jax \
	  | grep -Eiv '^(nvidia|cuda|triton)' | sed 's/+.*//'; } > "$$folder/new"; \
	mv "$$folder/new" constraints.txt

$(STAMP): pyproject.toml constraints.txt f3r_jax/__init__.py $(if $(filter-out $(installed),$(wanted)),FORCE)
	@set -e; trap 'exit 130' INT TERM; \
	pip="$(BIN)/python -m pip --disable-pip-version-check"; \
	if [ -e $(UNFINISHED) ]; then echo "$(VENV) is unfinished, creating it again"; rm -rf $(BIN) $(VENV); \
	elif [ -e $(VENV) ] && ! $$pip --version >/dev/null 2>&1; then echo "$(VENV) is broken, creating it again"; rm -rf $(BIN) $(VENV); fi; \
	fresh=; if [ ! -e $(VENV) ]; then \
	  fresh=yes; \
	  version=$$($(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3]); sys.exit(sys.version_info < (3, 11))' 2>/dev/null) \
	  || { echo "error: $(PYTHON) is $${version:-not found}, expected Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }; \
	  echo "setting up $(VENV) with $(PYTHON) ($$version); the first time takes minutes"; \
	  mkdir $(VENV); touch $(UNFINISHED); \
	  $(PYTHON) -m venv $(VENV); \
	fi; \
	touch $(UNFINISHED); \
	echo "installing f3r_jax$(if $(extras),[$(subst $(space),$(comma),$(extras))]) and its dependencies into $(VENV)"; \
	$$pip install -qq --constraint constraints.txt --editable '.$(if $(extras),[$(subst $(space),$(comma),$(extras))])' \
	|| { [ -n "$$fresh" ] || rm -f $(UNFINISHED); exit 1; }; \
	printf '%s\n' "$(CURDIR)" "core $(extras)" > $(STAMP); \
	rm -f $(UNFINISHED)

FORCE:

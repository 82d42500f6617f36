# Stages with GPUs: torch with CUDA, and vLLM. Build context: the root of the repository.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# pip reads these by itself. Wherever packages come from, their hashes decide.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/ngrpo
# The base's pip may be an old one: Debian 12 has 23.0.
COPY images/pip.txt /build/images/
RUN /opt/ngrpo/bin/pip install --no-deps --require-hashes -r /build/images/pip.txt
# Dependencies first: they change rarely, and a layer of gigabytes is built and pulled only then.
COPY images/gpu.txt /build/images/
# The lock names every package, so pip has nothing to resolve; the check says if one is missing.
RUN /opt/ngrpo/bin/pip install --no-deps --require-hashes -r /build/images/gpu.txt && /opt/ngrpo/bin/pip check
COPY pyproject.toml setup.py README.md LICENSE /build/
COPY components /build/components
COPY pipelines /build/pipelines
RUN /opt/ngrpo/bin/pip install --no-deps --no-build-isolation /build

FROM ${BASE}
# Triton compiles the launchers of its kernels, FlashInfer its kernels.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ngrpo-gpu" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/ngrpo /opt/ngrpo
ENV CUDA_HOME=/opt/ngrpo/lib/python3.11/site-packages/nvidia/cu13
# NVIDIA's wheels hold nvcc, headers and libraries, but not the names that a linker looks for. The driver's library comes with the node:
# what links to it gets one of the same name, with a function of no content for each that the header declares.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN ln -s lib "${CUDA_HOME}/lib64" && mkdir "${CUDA_HOME}/lib/stubs" && \
    for library in "${CUDA_HOME}"/lib/lib*.so.*; do ln -sf "$(basename "${library}")" "${library%%.so.*}.so"; done && \
    gcc -E -P "${CUDA_HOME}/include/cuda.h" | grep --only-matching --extended-regexp '\bcu[A-Z][A-Za-z0-9_]*\(' | sort --unique | \
    sed 's/^/void /; s/$/void) {}/' | gcc -shared -nostdlib -Wl,-soname,libcuda.so.1 -x c -o "${CUDA_HOME}/lib/stubs/libcuda.so" -
ENV PATH=/opt/ngrpo/bin:${PATH} HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    VLLM_NO_USAGE_STATS=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /tmp

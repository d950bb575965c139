# The four processes in one image: `--target cpu` runs the demo on any machine, `--target gpu` trains on NVIDIA GPUs;
# `--target judge` has the judge and its HTTP service alone, without torch.
#
#   docker build --target cpu -t atropos-livecode:cpu .
#   docker run --rm --security-opt seccomp=unconfined atropos-livecode:cpu
#   docker run --rm -e VERIFIER_TOKEN=... -p 8010:8010 atropos-livecode:judge     # a token of 16 characters or more
#
# The judge makes sandboxes of its own (user namespaces); Docker's default seccomp profile refuses them, which leaves
# rlimits and its other layers: see verifier_app/THREATS.md.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS base
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ libc6-dev libnuma1 make curl \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 1000 livecode \
    && mkdir -p /app/runs && chown -R livecode:livecode /app
WORKDIR /app
# By number, for hosts that check that it is not root.
USER 1000
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PATH=/app/.venv/bin:$PATH

FROM base AS judge
COPY --chown=livecode:livecode . .
RUN python -m venv .venv && .venv/bin/pip install --quiet .
EXPOSE 8010
HEALTHCHECK CMD ["curl", "--silent", "--fail", "http://127.0.0.1:8010/health"]
CMD ["atropos", "verifier", "serve", "--host", "0.0.0.0", "--port", "8010"]

# Pins before sources, so that an edit does not fetch them again.
FROM base AS cpu
COPY --chown=livecode:livecode requirements requirements
RUN python -m venv .venv && .venv/bin/pip install --quiet --no-deps -r requirements/cpu.txt
COPY --chown=livecode:livecode . .
RUN .venv/bin/pip install --quiet --no-deps --no-build-isolation -e . \
    && atropos pretrained --out models/SmolLM2-135M-Instruct
CMD ["atropos", "demo"]

FROM base AS gpu
COPY --chown=livecode:livecode requirements requirements
RUN python -m venv .venv && .venv/bin/pip install --quiet --no-deps -r requirements/gpu.txt
COPY --chown=livecode:livecode . .
RUN .venv/bin/pip install --quiet --no-deps --no-build-isolation -e .
CMD ["atropos", "--help"]

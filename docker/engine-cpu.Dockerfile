# vLLM for machines without a GPU, from the lock that the local stack runs from, and the example's two models as packages.
#   make images
ARG BASE=python:3.11.16-slim-bookworm
FROM ${BASE}

# Without TORCH_COMPILE_DISABLE the first request that asks for probabilities has PyTorch look for a C++ compiler, and ends
# the engine when there is none. --enforce-eager does not reach so far. The caches are for whoever turns it on again: Docker
# mounts a tmpfs such as /tmp so that nothing in it can be executed.
ENV PATH=/opt/headrace/envs/engine/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/headrace \
    TMPDIR=/tmp \
    TORCH_COMPILE_DISABLE=1 \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_CPU_KVCACHE_SPACE=1 \
    VLLM_CPU_OMP_THREADS_BIND=nobind \
    VLLM_CACHE_ROOT=/var/lib/headrace/vllm \
    VLLM_CONFIG_ROOT=/var/lib/headrace/vllm-config \
    XDG_CACHE_HOME=/var/lib/headrace/cache \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/headrace/inductor \
    TRITON_CACHE_DIR=/var/lib/headrace/triton \
    HF_HOME=/var/lib/headrace/huggingface

# Of a build only: how pip is told of mirrors and certificates, see docker/build.sh.
ARG PIP_CONFIG_FILE
# vLLM's own extension for the CPU needs libnuma; its version is the base's own affair.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*

# bootstrap.py knows where PyTorch's CPU build comes from; it installs by hash, and says on failure what the reason is.
COPY infra/bootstrap.py /app/infra/bootstrap.py
COPY infra/locks/engine.txt infra/locks/models.txt /app/infra/locks/
RUN groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/headrace --shell /usr/sbin/nologin headrace \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/headrace \
    && install --directory --owner=10001 --group=10001 --mode=0755 /weights \
    && PIP_NO_CACHE_DIR=1 HEADRACE_HOME=/tmp/build HEADRACE_ENVS=/opt/headrace/envs \
        python3.11 /app/infra/bootstrap.py engine \
    && rm -r /tmp/build

COPY infra/llm/models.py /app/infra/llm/models.py
COPY infra/llm/templates /app/infra/llm/templates
COPY docker/entry.py docker/health.py /app/docker/
WORKDIR /var/lib/headrace

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headrace-engine-cpu" \
      org.opencontainers.image.description="vLLM on the CPU, with the packages of the example's two models." \
      org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-Gemma-Terms-of-Use" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
VOLUME ["/var/lib/headrace", "/weights"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=6 \
    CMD ["python3", "/app/docker/health.py", "http://127.0.0.1:8000/health"]
ENTRYPOINT ["python3", "/app/docker/entry.py", "python3", "-m", "vllm.entrypoints.openai.api_server"]

# vLLM for GPUs: the official image, run as an ordinary user, with its key from a file.
#   docker build --file docker/engine.Dockerfile --tag headrace/engine:0.1.0 .
ARG BASE=vllm/vllm-openai:v0.32.0
FROM ${BASE}

# What is compiled while the engine runs goes to the volume: Docker mounts a tmpfs such as /tmp so that nothing in it can be
# executed, and PyTorch's own place for it is there.
ENV PYTHONUNBUFFERED=1 \
    HOME=/var/lib/headrace \
    TMPDIR=/tmp \
    VLLM_NO_USAGE_STATS=1 \
    VLLM_CACHE_ROOT=/var/lib/headrace/vllm \
    VLLM_CONFIG_ROOT=/var/lib/headrace/vllm-config \
    XDG_CACHE_HOME=/var/lib/headrace/cache \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/headrace/inductor \
    TRITON_CACHE_DIR=/var/lib/headrace/triton \
    HF_HOME=/var/lib/headrace/huggingface

# PyTorch asks for the name of the user it runs as.
USER 0
RUN groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/headrace --shell /usr/sbin/nologin headrace \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/headrace \
    && install --directory --owner=10001 --group=10001 --mode=0755 /weights
COPY docker/entry.py docker/health.py /app/docker/
WORKDIR /var/lib/headrace

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headrace-engine" \
      org.opencontainers.image.description="The official vLLM image as an ordinary user, its key from a file." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
VOLUME ["/var/lib/headrace", "/weights"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=6 \
    CMD ["python3", "/app/docker/health.py", "http://127.0.0.1:8000/health"]
ENTRYPOINT ["python3", "/app/docker/entry.py", "python3", "-m", "vllm.entrypoints.openai.api_server"]

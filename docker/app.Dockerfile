# Everything of ours: command line, worker, webhooks, dashboard, migrations; and the Prefect and MLflow servers, which
# run from the same lock here as in the local stack.
#   make images
ARG BASE=python:3.11.16-slim-bookworm
FROM ${BASE}

# What the user may write is /var/lib/headrace (a volume) and /tmp (a tmpfs): the rest can be read-only.
ENV PATH=/opt/headrace/envs/app/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/headrace \
    TMPDIR=/tmp \
    HEADRACE_HOME=/var/lib/headrace \
    HEADRACE_ENVS=/opt/headrace/envs \
    HEADRACE_EMBEDDED=false \
    HEADRACE_ROOT=/app \
    PREFECT_HOME=/var/lib/headrace/prefect \
    PREFECT_LOCAL_STORAGE_PATH=/var/lib/headrace/prefect/storage \
    PREFECT_LOGGING_SETTINGS_PATH=/opt/headrace/prefect/logging.yml \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/tmp/prefect-ui \
    MPLCONFIGDIR=/tmp/matplotlib

# Of a build only: how pip is told of mirrors and certificates, see docker/build.sh.
ARG PIP_CONFIG_FILE
# The lock alone decides about this layer, the large one.
COPY infra/locks/app.txt /opt/headrace/locks/app.txt
RUN groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/headrace --shell /usr/sbin/nologin headrace \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/headrace \
    && python3.11 -m venv /opt/headrace/envs/app \
    && pip install --no-cache-dir --no-input --require-hashes --no-deps --requirement /opt/headrace/locks/app.txt

COPY pyproject.toml prefect.yaml LICENSE headrace /app/
COPY domain /app/domain
COPY tasks /app/tasks
COPY flows /app/flows
COPY infra /app/infra
COPY dashboards /app/dashboards
COPY examples /app/examples
COPY docker/entry.py docker/health.py /app/docker/
WORKDIR /app
# Bytecode is made now, nobody may write it later; so is Prefect's logging file, without passwords at DEBUG.
RUN python -m compileall -q /app \
    && python -c "import pathlib, infra.quieting as q; q.write_logging(pathlib.Path('/opt/headrace/prefect'))" \
    && chmod 0755 /opt/headrace/prefect

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="An LLM job over a dataset as a loop that is traceable, replayable and testable." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
VOLUME /var/lib/headrace
# A container that serves says in HEALTH_URL where it answers; one that only carries a command out is always well.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=6 CMD ["python", "/app/docker/health.py"]
ENTRYPOINT ["python", "/app/docker/entry.py", "python", "-m", "infra.cli"]
CMD ["--help"]

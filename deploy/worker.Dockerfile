# The gpu worker. Runs as an unprivileged user on a read-only root that is writable under /tmp and /var/cache/farm; mount checkpoints at
# /checkpoints. pip's default index has torch's CUDA build for Linux; name another index for another build:
#   docker build -f deploy/worker.Dockerfile -t farm-worker [--build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu] .
FROM python:3.11-slim AS build
ARG TORCH_INDEX_URL=""
WORKDIR /source
RUN python -m venv /farm
ENV PATH=/farm/bin:$PATH
COPY constraints.txt ./
# torch first, in a layer of its own: it takes gigabytes and changes least.
RUN pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md ./
COPY shared shared
COPY api api
COPY worker worker
COPY deploy deploy
RUN pip install --no-cache-dir --constraint constraints.txt ".[client,worker,otel]"

FROM python:3.11-slim
COPY --from=build /farm /farm
ENV PATH=/farm/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp FARM_CACHE_DIR=/var/cache/farm \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN install --directory --owner 10001 --group 10001 /var/cache/farm /checkpoints
WORKDIR /tmp
USER 10001:10001
CMD ["celery", "-A", "worker.gpu", "worker", "--pool", "threads", "--concurrency", "8"]

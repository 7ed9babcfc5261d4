# The gpu worker. torch's CUDA build comes from the index that pip is configured for; checkpoints are mounted.
FROM python:3.11-slim
WORKDIR /farm
COPY constraints.txt pyproject.toml README.md ./
COPY shared shared
COPY api api
COPY worker worker
COPY deploy deploy
RUN pip install --no-cache-dir --constraint constraints.txt torch && pip install --no-cache-dir --constraint constraints.txt ".[worker]"
USER nobody

# The api, the courier and the migrations: no torch.
FROM python:3.11-slim
WORKDIR /farm
COPY constraints.txt pyproject.toml README.md ./
COPY shared shared
COPY api api
COPY worker worker
COPY deploy deploy
RUN pip install --no-cache-dir --constraint constraints.txt ".[api]"
USER nobody

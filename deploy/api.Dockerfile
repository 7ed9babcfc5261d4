# The api, the courier and the migrations, without torch. Runs as an unprivileged user on a read-only root.
#   docker build -f deploy/api.Dockerfile -t farm-api .
FROM python:3.11-slim AS build
WORKDIR /source
RUN python -m venv /farm
ENV PATH=/farm/bin:$PATH
COPY constraints.txt pyproject.toml README.md ./
COPY shared shared
COPY api api
COPY worker worker
COPY deploy deploy
RUN pip install --no-cache-dir --constraint constraints.txt ".[api,client,otel]"

FROM python:3.11-slim
COPY --from=build /farm /farm
ENV PATH=/farm/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /tmp
USER 10001:10001
EXPOSE 8000
CMD ["python", "-m", "api.serve", "--host", "0.0.0.0", "--port", "8000"]

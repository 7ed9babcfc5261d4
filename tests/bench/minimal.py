"""Baseline of a submit: validate, insert one row, ring a doorbell. `python -m tests.bench.minimal 8000` serves it."""

import sys
import uuid

import uvicorn
from fastapi import FastAPI
from psycopg.types.json import Jsonb
from sqlalchemy import create_engine, text

from api.admission.submissions import Submission
from shared.infra import broker
from shared.settings import Settings

INSERT = text("INSERT INTO minimal (id, params) VALUES (:id, :params)")


def create() -> FastAPI:
    settings = Settings()
    engine = create_engine(settings.database_url.get_secret_value(), pool_size=40)  # as many as handlers run at once
    redis = broker.connect(settings)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS minimal (id uuid PRIMARY KEY, params jsonb)"))
    app = FastAPI()

    @app.post("/v1/jobs", status_code=202)
    def submit(submission: Submission) -> dict[str, str]:
        job_id = uuid.uuid4()
        with engine.begin() as connection:
            connection.execute(INSERT, {"id": job_id, "params": Jsonb(submission.model_dump(mode="json"))})
        redis.lpush("minimal", str(job_id))
        return {"id": str(job_id)}

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        return {"status": "ready"}

    return app


if __name__ == "__main__":
    uvicorn.run(create(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)

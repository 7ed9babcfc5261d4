"""A program on the client that openapi-python-client makes of the farm's document: `client.py URL`."""

# The client is generated when the test runs.
# mypy: ignore-errors

import sys

from render_farm_client import Client
from render_farm_client.api.jobs import fetch_image, list_jobs, show_job, submit_job
from render_farm_client.models import ProblemDetails, Submission

client = Client(base_url=sys.argv[1], follow_redirects=True)

job = submit_job.sync(client=client, body=Submission(prompt="a red circle", width=64, height=64, steps=2))
while job.state not in {"succeeded", "failed"}:
    job = show_job.sync(job.id, client=client, prefer="wait=60")
assert job.state == "succeeded", job
assert job.id in {one.id for one in list_jobs.sync(client=client).jobs}
assert fetch_image.sync_detailed(job.id, 0, client=client).content.startswith(b"\x89PNG")

refused = submit_job.sync(client=client, body=Submission(prompt="x", steps=0))
assert isinstance(refused, ProblemDetails), refused
assert refused.code == "invalid_request", refused

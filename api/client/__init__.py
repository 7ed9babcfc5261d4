"""Python client of the farm: `Farm` blocks, `AsyncFarm` is for asyncio.

    with Farm("http://127.0.0.1:8000", api_key="…") as farm:
        job = farm.wait(farm.submit(prompt="a red circle on a blue background").id)
        Path("circle.png").write_bytes(farm.image(job, 0))

Both run the same generators of `sans_io`, each on a transport of its own.
"""

from api.client.asynchronous import AsyncFarm
from api.client.farm import Farm
from api.client.problems import ClientError
from api.client.webhooks import BadSignature, verify
from shared.jobs.wire import Batch, Job, Preview, Steps

__all__ = ["AsyncFarm", "BadSignature", "Batch", "ClientError", "Farm", "Job", "Preview", "Steps", "verify"]

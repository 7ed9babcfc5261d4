"""How a client takes a story up again."""

import pytest
from httpx_sse import ServerSentEvent

from api.client import ClientError
from api.client.event_stream import AGAIN_S, EventStream
from shared.jobs.wire import EXAMPLE, Job, Steps

JOB_ID = str(EXAMPLE["id"])
AWAY = ClientError("unreachable", "nobody there", transient=True)


def event(kind: str, number: int, data: str) -> ServerSentEvent:
    return ServerSentEvent(event=kind, id=str(number), data=data)


def steps(version: int) -> ServerSentEvent:
    return event(
        "progress", version, f'{{"job_id": "{JOB_ID}", "version": {version}, "steps_done": 1, "steps_total": 2}}'
    )


def test_it_asks_for_what_came_after_the_last_event() -> None:
    story = EventStream(JOB_ID, previews=True)
    assert "Last-Event-ID" not in (story.call().headers or {})
    assert story.call().params == {"previews": "true"}
    assert isinstance(story.heard(steps(7)), Steps)
    assert story.call().headers == {"Accept": "text/event-stream", "Last-Event-ID": "7"}
    assert story.heard(ServerSentEvent(event="preview-of-the-future", data="{}")) is None
    assert (story.call().headers or {})["Last-Event-ID"] == "7"


@pytest.mark.parametrize(("state", "over"), [("running", False), ("succeeded", True)])
def test_it_is_over_with_a_final_state(state: str, over: bool) -> None:
    story = EventStream(JOB_ID, previews=False)
    job = Job.model_validate({**EXAMPLE, "state": state})
    assert story.heard(event("state", 14, job.model_dump_json())) == job
    assert story.is_over is over


def test_it_is_patient_for_a_minute_of_silence() -> None:
    now = [0.0]
    story = EventStream(JOB_ID, previews=False, clock=lambda: now[0])
    assert story.broke() == AGAIN_S
    now[0] = 59.0
    assert story.broke(AWAY) == AGAIN_S
    story.heard(steps(2))
    now[0] = 100.0
    assert story.broke(AWAY) == AGAIN_S
    now[0] = 160.0
    with pytest.raises(ClientError, match="nobody there"):
        story.broke(AWAY)


def test_a_refusal_or_nonsense_ends_it() -> None:
    story = EventStream(JOB_ID, previews=False)
    with pytest.raises(ClientError, match="no such job"):
        story.broke(ClientError("job_not_found", "no such job", status=404))
    with pytest.raises(ClientError, match="cannot read the progress's version"):
        story.heard(
            event("progress", 1, f'{{"job_id": "{JOB_ID}", "version": "x", "steps_done": 1, "steps_total": 2}}')
        )

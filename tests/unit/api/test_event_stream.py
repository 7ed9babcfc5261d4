"""How a client resumes an event stream."""

import pytest
from httpx_sse import ServerSentEvent

from api.client import ClientError
from api.client.event_stream import RECONNECT_S, EventStream
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
    events = EventStream(JOB_ID, previews=True)
    assert "Last-Event-ID" not in (events.request().headers or {})
    assert events.request().params == {"previews": "true"}
    assert isinstance(events.receive(steps(7)), Steps)
    assert events.request().headers == {"Accept": "text/event-stream", "Last-Event-ID": "7"}
    assert events.receive(ServerSentEvent(event="preview-of-the-future", data="{}")) is None
    assert (events.request().headers or {})["Last-Event-ID"] == "7"


@pytest.mark.parametrize(("state", "over"), [("running", False), ("succeeded", True)])
def test_it_is_over_with_a_final_state(state: str, over: bool) -> None:
    events = EventStream(JOB_ID, previews=False)
    job = Job.model_validate({**EXAMPLE, "state": state})
    assert events.receive(event("state", 14, job.model_dump_json())) == job
    assert events.is_over is over


def test_it_is_patient_for_a_minute_of_silence() -> None:
    now = [0.0]
    events = EventStream(JOB_ID, previews=False, clock=lambda: now[0])
    assert events.backoff_s() == RECONNECT_S
    now[0] = 59.0
    assert events.backoff_s(AWAY) == RECONNECT_S
    events.receive(steps(2))
    now[0] = 100.0
    assert events.backoff_s(AWAY) == RECONNECT_S
    now[0] = 160.0
    with pytest.raises(ClientError, match="nobody there"):
        events.backoff_s(AWAY)


def test_a_refusal_or_nonsense_ends_it() -> None:
    events = EventStream(JOB_ID, previews=False)
    with pytest.raises(ClientError, match="no such job"):
        events.backoff_s(ClientError("job_not_found", "no such job", status=404))
    with pytest.raises(ClientError, match="cannot read the progress's version"):
        events.receive(
            event("progress", 1, f'{{"job_id": "{JOB_ID}", "version": "x", "steps_done": 1, "steps_total": 2}}')
        )

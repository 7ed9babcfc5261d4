"""Webhook endpoints: register, change, pause, resume and delete them, and rotate signing secrets."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Path, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy.orm import Session

from api.admission.submissions import WebhookChoice
from api.callers import Reader, Submitter
from api.desk import DeskDep
from api.openapi import documented
from api.routing import Router
from shared.errors import EndpointNotFound
from shared.infra import url_guard
from shared.infra.tables import EndpointRow, OwnerSecretRow
from shared.jobs.outbox import EventType
from shared.webhooks import endpoints
from shared.webhooks.endpoints import EndpointState

MAX_OVERLAP_S = 7 * 86_400

router = Router(prefix="/v1/webhooks", tags=["webhooks"], responses=documented(401, 403, 422, 429, 503))


async def endpoint_id_of(endpoint_id: Annotated[str, Path(description="The endpoint's id.")]) -> UUID:
    """Parse an endpoint id. A malformed id is an unknown endpoint: raises `EndpointNotFound`."""
    try:
        return UUID(endpoint_id)
    except ValueError:
        raise EndpointNotFound from None


EndpointId = Annotated[UUID, Depends(endpoint_id_of)]


class EndpointChange(BaseModel):
    """The changes to an endpoint. A field that is null stays as it is."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str | None, Field(strict=True, max_length=url_guard.MAX_URL_CHARS)] = None
    events: Annotated[
        list[EventType] | None, Field(min_length=1, max_length=len(EventType), description="Replaces the list.")
    ] = None


class Rotation(BaseModel):
    """The replacement of a signing secret."""

    model_config = ConfigDict(extra="forbid")

    secret: Annotated[SecretStr | None, Field(description="The new secret, `whsec_…`; null generates one.")] = None
    overlap_s: Annotated[
        int, Field(strict=True, ge=0, le=MAX_OVERLAP_S, description="Seconds for which the old secret signs as well.")
    ] = 86_400


class Endpoint(BaseModel):
    """A webhook endpoint. `suspended`: it failed for so long that it only gets probes; `gone`: it answered 410."""

    id: UUID
    url: str
    events: list[EventType]
    state: EndpointState
    registered: Annotated[bool, Field(description="False if a job named the URL in its `webhook`.")]
    failing_since: Annotated[datetime | None, Field(description="First failure since the last success.")]
    old_secret_until: Annotated[datetime | None, Field(description="Until then the old secret signs as well.")]
    created_at: datetime

    @classmethod
    def of(cls, row: EndpointRow) -> "Endpoint":
        """Show a row."""
        return cls.model_validate(row, from_attributes=True)


class Secret(BaseModel):
    """A signing secret. Until `old_secret_until` the old secret signs as well."""

    secret: str
    old_secret_until: datetime | None


class NewEndpoint(Endpoint):
    """An endpoint that was just registered. Only this answer contains its secret."""

    secret: str


class Endpoints(BaseModel):
    """The registered endpoints, oldest first."""

    endpoints: list[Endpoint]


@router.post("/endpoints", status_code=201, summary="Register an endpoint", responses=documented(400, 409))
def register(wanted: WebhookChoice, desk: DeskDep, caller: Submitter, response: Response) -> NewEndpoint:
    """Register an endpoint for all jobs of your key. Only this answer contains its secret."""
    with desk.db.transaction() as session:
        row = endpoints.register(
            session,
            owner=caller.owner,
            url=wanted.url,
            events=wanted.events,
            secret=wanted.secret.get_secret_value() if wanted.secret else None,
            allow_private=desk.settings.allow_private_urls,
        )
        response.headers["Location"] = f"/v1/webhooks/endpoints/{row.id}"
        return NewEndpoint.model_validate(row, from_attributes=True)


@router.get("/endpoints", summary="List endpoints")
def listing(desk: DeskDep, caller: Reader) -> Endpoints:
    """List the registered endpoints."""
    with desk.db.transaction() as session:
        rows = endpoints.listing(session, owner=caller.sees_only)
        return Endpoints(endpoints=[Endpoint.of(row) for row in rows])


@router.get("/endpoints/{endpoint_id}", summary="Show an endpoint", responses=documented(404))
def show(endpoint_id: EndpointId, desk: DeskDep, caller: Reader) -> Endpoint:
    """Show one endpoint, registered or named by a job."""
    with desk.db.transaction() as session:
        return Endpoint.of(endpoints.get(session, endpoint_id, owner=caller.sees_only))


@router.patch("/endpoints/{endpoint_id}", summary="Change an endpoint", responses=documented(400, 404))
def change(endpoint_id: EndpointId, wanted: EndpointChange, desk: DeskDep, caller: Submitter) -> Endpoint:
    """Change an endpoint's URL or events. A new URL becomes active at once and gets all pending deliveries."""
    with desk.db.transaction() as session:
        row = endpoints.get(session, endpoint_id, owner=caller.sees_only)
        if wanted.events is not None:
            row.events = sorted(set(wanted.events))
        if wanted.url is not None:
            row.origin = url_guard.parse(wanted.url, allow_private=desk.settings.allow_private_urls).origin
            row.url, row.proven_at = wanted.url, None
            endpoints.resume(session, row)
        return Endpoint.of(row)


@router.delete("/endpoints/{endpoint_id}", status_code=204, summary="Delete an endpoint", responses=documented(404))
def delete(endpoint_id: EndpointId, desk: DeskDep, caller: Submitter) -> None:
    """Delete an endpoint and its deliveries, pending ones too."""
    with desk.db.transaction() as session:
        session.delete(endpoints.get(session, endpoint_id, owner=caller.sees_only))


@router.post("/endpoints/{endpoint_id}/pause", summary="Pause an endpoint", responses=documented(404))
def pause(endpoint_id: EndpointId, desk: DeskDep, caller: Submitter) -> Endpoint:
    """Pause deliveries to an endpoint. They are kept until it is resumed."""
    with desk.db.transaction() as session:
        row = endpoints.get(session, endpoint_id, owner=caller.sees_only)
        endpoints.pause(row)
        return Endpoint.of(row)


@router.post("/endpoints/{endpoint_id}/resume", summary="Resume an endpoint", responses=documented(404))
def resume(endpoint_id: EndpointId, desk: DeskDep, caller: Submitter) -> Endpoint:
    """Make a paused, suspended or gone endpoint active again, and send its pending deliveries at once."""
    with desk.db.transaction() as session:
        row = endpoints.get(session, endpoint_id, owner=caller.sees_only)
        endpoints.resume(session, row)
        return Endpoint.of(row)


@router.post("/endpoints/{endpoint_id}/rotate", summary="Rotate an endpoint's secret", responses=documented(400, 404))
def rotate(endpoint_id: EndpointId, wanted: Rotation, desk: DeskDep, caller: Submitter) -> Secret:
    """Give an endpoint a new secret. For `overlap_s` seconds both secrets sign, so that the receiver can switch without a gap."""
    with desk.db.transaction() as session:
        row = endpoints.get(session, endpoint_id, owner=caller.sees_only)
        return _rotated(session, row, wanted)


@router.get("/secret", summary="Show your key's signing secret")
def secret(desk: DeskDep, caller: Submitter) -> Secret:
    """Show the secret that signs webhooks of your jobs whose `webhook` has no secret of its own."""
    with desk.db.transaction() as session:
        return Secret.model_validate(endpoints.owner_secret(session, caller.owner), from_attributes=True)


@router.post("/secret/rotate", summary="Rotate your key's signing secret", responses=documented(400))
def rotate_own(wanted: Rotation, desk: DeskDep, caller: Submitter) -> Secret:
    """Replace your key's signing secret. For `overlap_s` seconds both secrets sign."""
    with desk.db.transaction() as session:
        return _rotated(session, endpoints.owner_secret(session, caller.owner), wanted)


def _rotated(session: Session, row: EndpointRow | OwnerSecretRow, wanted: Rotation) -> Secret:
    endpoints.rotate(
        row, overlap_s=wanted.overlap_s, secret=wanted.secret.get_secret_value() if wanted.secret else None
    )
    session.flush()
    session.refresh(row)
    return Secret.model_validate(row, from_attributes=True)

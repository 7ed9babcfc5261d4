"""From submissions to jobs to store: the names that they use are looked up, in one transaction, each once."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from uuid import UUID

from sqlalchemy.orm import Session

from api.admission.checkpoint_names import CheckpointNames
from api.admission.resolution import StoredInputs, resolve
from api.admission.submissions import Submission, WebhookChoice
from api.farm import checkpoints
from shared.files.weights import Kind
from shared.fleet import registry
from shared.jobs.submits import NewJob
from shared.settings import Settings
from shared.webhooks import endpoints


class Orders:
    """Makes jobs of submissions that are stored in one transaction and may share checkpoints, weights and webhooks.

    Asks for a session only where it looks something up.
    """

    def __init__(
        self, session: Callable[[], Session], settings: Settings, names: CheckpointNames | None = None
    ) -> None:
        self._session = session
        self._settings = settings
        self._checkpoint = cache(partial((names or CheckpointNames(settings)).choose, session))
        self._weights = cache(
            lambda kind, name: registry.resolve_weights(session(), kind, name, silent_after_s=settings.lease_seconds)
        )
        self._check_pair = cache(
            lambda *names: checkpoints.check_pair(session(), *names, silent_after_s=settings.lease_seconds)
        )
        self._receivers: dict[str, UUID] = {}

    def order(self, owner: str, submission: Submission, received: StoredInputs) -> NewJob:
        """Resolve a submission. Raises `InvalidRequest`, of which unknown and refused checkpoints are kinds, or `BlockedUrl`."""
        checkpoint = self._checkpoint(submission.checkpoint)
        params = resolve(
            submission,
            checkpoint=checkpoint,
            hires_checkpoint=self._hires_checkpoint(submission, checkpoint),
            vae=self._weights(Kind.VAE, submission.vae) if submission.vae else None,
            find_lora=partial(self._weights, Kind.LORA),
            inputs=received,
        )
        return NewJob(
            params=params,
            max_attempts=self._settings.max_attempts,
            owner=owner,
            priority=submission.priority,
            endpoint_id=self.receiver(owner, submission.webhook),
            expires_in_s=submission.expires_in,
            timeout_s=submission.timeout or self._settings.run_seconds or None,
        )

    def _hires_checkpoint(self, submission: Submission, first: str) -> str | None:
        if submission.hires is None or submission.hires.checkpoint is None:
            return None
        second = self._checkpoint(submission.hires.checkpoint)
        self._check_pair(first, second)
        return second

    def find_receivers(self, owner: str, webhooks: Iterable[WebhookChoice | None]) -> None:
        """Look up the webhooks of a transaction in one order: new ones are locked until it ends. Raises as `receiver`."""
        for webhook in sorted(webhooks, key=partial(told_apart, owner)):
            self.receiver(owner, webhook)

    def receiver(self, owner: str, webhook: WebhookChoice | None) -> UUID | None:
        """Return the id of the webhook endpoint that a submission names. Raises `BlockedUrl` and `InvalidRequest`."""
        if webhook is None:
            return None
        same = told_apart(owner, webhook)
        if same not in self._receivers:
            self._receivers[same] = endpoints.find_or_add(
                self._session(),
                owner=owner,
                url=webhook.url,
                events=webhook.events,
                secret=_secret(webhook),
                allow_private=self._settings.allow_private_urls,
                most=self._settings.max_webhook_urls,
            )
        return self._receivers[same]


def told_apart(owner: str, webhook: WebhookChoice | None) -> str:
    """Return a text that differs between the webhooks that differ; an empty one for none."""
    return repr((owner, webhook.url, sorted(webhook.events), _secret(webhook))) if webhook else ""


def _secret(webhook: WebhookChoice) -> str | None:
    return webhook.secret.get_secret_value() if webhook.secret else None

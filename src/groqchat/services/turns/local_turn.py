"""A turn of this process, and how much of it Redis has."""

from dataclasses import dataclass

from groqchat.services.turns.turn import Turn
from groqchat.storage import keys
from groqchat.storage.event_log import EventBatch


@dataclass(slots=True)
class LocalTurn:
    """A turn of this process, and how much of it Redis has."""

    turn: Turn
    # How many events Redis has, and how many it has after the current batch.
    published: int = 0
    sent: int = 0
    is_last_batch: bool = False
    is_published: bool = False
    renewed_at: float = -keys.LEASE_RENEWAL_S
    published_at: float = 0.0
    over_since: float | None = None
    # Whether the session of the turn was deleted; connected clients still receive its events.
    is_deleted: bool = False
    # Whether Redis may have events of the turn although it is deleted.
    has_stale_events: bool = False

    @property
    def is_hidden(self) -> bool:
        """Whether no further client may follow the turn."""
        return self.turn.is_private or self.is_deleted

    def is_due(self, now: float) -> bool:
        """Return whether Redis needs events of the turn or a renewed lease."""
        if self.is_hidden or self.turn.is_superseded or not self.turn.events:
            return False
        has_events = self.published < len(self.turn.events)
        return has_events or self.turn.is_over != self.is_published or self._ttl_s(now) is not None

    def unpublished(self, now: float) -> EventBatch:
        """Return the next events for Redis, and note whether they are the last ones."""
        turn = self.turn
        events, last = b"", self.published
        if last < len(turn.events):
            events, last = turn.next_events(last)
        self.sent = last
        self.is_last_batch = turn.is_over and last == len(turn.events)
        return EventBatch(
            turn_id=turn.id,
            session_id=turn.session_id,
            events=events,
            last=turn.events.first_number + last - 1,
            is_first=self.published == 0,
            ttl_s=self._ttl_s(now),
            claim=turn.claim,
            is_last=self.is_last_batch,
            is_repeatable=self.is_last_batch and turn.is_repeatable,
        )

    def mark_published(self, batch: EventBatch, now: float) -> None:
        """Record that Redis has a batch."""
        self.published = self.sent
        self.published_at = now
        self.is_published = self.is_last_batch
        if batch.ttl_s is not None:
            self.renewed_at = now

    def mark_lost(self) -> None:
        """Record that Redis has lost the turn, so that all its events are written again."""
        self.published = 0
        self.is_published = False
        self.renewed_at = -keys.LEASE_RENEWAL_S

    def mark_deleted(self) -> None:
        """Record that the session was deleted, so that the events in Redis are deleted too."""
        self.is_deleted = self.has_stale_events = True

    def _ttl_s(self, now: float) -> int | None:
        if self.is_last_batch:
            return None if self.is_published else self.turn.retention_s
        # The first batch creates the key, so it always contains the TTL.
        is_due = not self.published or now - self.renewed_at >= keys.LEASE_RENEWAL_S
        return keys.TURN_LEASE_S if is_due else None

"""What a notification says: sealed with its customer's key in the log, opened by the services that show or find it.

A text repeats names, memos and amounts. In the log it is one field, `sealed_text`; the members `title`, `body` and
`actions` are empty there, and filled only in memory, in what `open_text` gives.
"""

from typing import TypeVar
from uuid import UUID

import msgspec

from events.contracts.notification import Action, Notification, NotificationRequested
from events.sealing import SubjectKeys

PLACE = "notification.text"


class _Text(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    body: str
    actions: tuple[Action, ...] = ()


N = TypeVar("N", bound=Notification | NotificationRequested)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Text)


async def seal_text(keys: SubjectKeys, user_id: UUID, event: N) -> N:
    """The event as it is appended.

    Raises:
        SubjectErased: nothing may be kept about this person.
        OSError, asyncpg.PostgresError: the key database cannot be asked.
    """
    text = _encoder.encode(_Text(title=event.title, body=event.body, actions=event.actions)).decode()
    sealed = await keys.seal(user_id, text, PLACE)
    return msgspec.structs.replace(event, title="", body="", actions=(), sealed_text=sealed)


async def open_text(keys: SubjectKeys, user_id: UUID, event: N) -> N | None:
    """The event with its words, as `seal_text` got it; None once the person has been erased. An event from before
    texts were sealed is given back as it is.

    Raises:
        SealBroken: the text was sealed for somebody else, or changed since.
        OSError, asyncpg.PostgresError: the key database cannot be asked.
    """
    if event.sealed_text is None:
        return event
    opened = await keys.open(user_id, event.sealed_text, PLACE)
    if opened is None:
        return None
    text = _decoder.decode(opened)
    return msgspec.structs.replace(event, title=text.title, body=text.body, actions=text.actions, sealed_text=None)

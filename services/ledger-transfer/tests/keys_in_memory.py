"""Subjects' keys without a key database, for tests that are about something else. It hides the text, and no more."""

from collections.abc import Collection
from uuid import UUID

from events.sealing import SubjectErased
from events.texts import Texts


class KeysInMemory:
    """What `events.sealing.SubjectKeys` promises."""

    def __init__(self) -> None:
        self.erased: set[UUID] = set()

    async def seal(self, subject: UUID, text: str, place: str) -> str:
        if subject in self.erased:
            raise SubjectErased
        return f"{subject}.{place}.{text.encode().hex()}"

    async def open(self, subject: UUID, sealed: str, place: str) -> str | None:
        whose, where, text = sealed.split(".")
        assert (whose, where) == (str(subject), place)
        return None if subject in self.erased else bytes.fromhex(text).decode()

    async def fetch(self, subjects: Collection[UUID]) -> None:
        pass

    def bury(self, subject: UUID) -> None:
        self.erased.add(subject)


def texts() -> Texts:
    """Texts that are sealed with such keys."""
    return Texts(KeysInMemory())

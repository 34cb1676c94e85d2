"""The hash chain, computed here from the exact bytes: a second opinion on what schema.sql defines.

Each hash is sha256(hash before, event's bytes); `event_bytes` and `GENESIS` say the same as store.event_bytes and
store.genesis, in another language and on another machine if need be.
"""

import hashlib
import struct

import asyncpg

GENESIS = hashlib.sha256(b"sangam event log").digest()
"""The hash before the first event."""

_NUMBERS = struct.Struct(">qqi")
_INT8 = struct.Struct(">q")
_INT4 = struct.Struct(">i")

COLUMNS = (
    "l.position, l.id, l.chain_hash, e.id AS event_row, e.stream, e.version, e.event_id, e.type, e.schema_version,"
    " e.subject, e.data, e.metadata, timestamptz_send(e.recorded_at) AS recorded_at"
)
"""What `event_bytes` needs of `store.log l` and `store.events e`. The time as the server's own eight bytes."""


def event_bytes(row: asyncpg.Record) -> bytes:
    """Everything the chain covers of one event: position, id and every column."""
    stream, event_type, data, metadata = row["stream"].encode(), row["type"].encode(), row["data"], row["metadata"]
    return b"".join(
        (
            _NUMBERS.pack(row["position"], row["id"], len(stream)),
            stream,
            _INT8.pack(row["version"]),
            row["event_id"].bytes,
            _INT4.pack(len(event_type)),
            event_type,
            _INT4.pack(row["schema_version"]),
            _INT4.pack(16) + row["subject"].bytes if row["subject"] is not None else _INT4.pack(0),
            _INT4.pack(len(data)),
            data,
            _INT4.pack(len(metadata)),
            metadata,
            row["recorded_at"],
        )
    )


def step(before: bytes, row: asyncpg.Record) -> bytes:
    """The hash after an event."""
    return hashlib.sha256(before + event_bytes(row)).digest()

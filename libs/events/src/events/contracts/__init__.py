"""Domain-event contracts: one module per publisher context, one frozen struct per event type.

A contract is registered with its type name and schema version; the registry is what encodes and
decodes payloads everywhere. Amounts are integers in minor units beside an ISO 4217 `currency`.
"""

from events.contracts import (
    banking,
    customer,
    identity,
    ledger,
    ledger_rules,
    notification,
    operations,
    sync,
    trading,
    wealth,
)
from events.contracts.registry import (
    Contract,
    Event,
    UnknownContract,
    contract_of,
    decode,
    encode,
    registered,
)

__all__ = [
    "Contract",
    "Event",
    "UnknownContract",
    "banking",
    "contract_of",
    "customer",
    "decode",
    "encode",
    "identity",
    "ledger",
    "ledger_rules",
    "notification",
    "operations",
    "registered",
    "sync",
    "trading",
    "wealth",
]

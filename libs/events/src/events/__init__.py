"""The event backbone: contracts, event store, relay, consumers, projections.

Start with `events.store` (append and read), `events.decisions` (commands) and `events.consumer` (read models and
reactions). docs/architecture.md tells how they fit together.
"""

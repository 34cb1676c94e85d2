"""What the backbone tells Prometheus. Labels name code (services, consumers, categories), never customers."""

from prometheus_client import Counter, Gauge, Histogram

version_conflicts = Counter("sangam_version_conflicts_total", "Appends decided on a stale version", ["category"])
sequenced = Counter("sangam_sequenced_total", "Events that got a position")
log_head = Gauge("sangam_log_head_position", "The log's last position, as this relay knows it")
is_leader = Gauge("sangam_relay_leader", "1 on the relay that sequences and publishes")
published = Counter("sangam_published_total", "Events confirmed by RabbitMQ", ["publisher"])
unpublished_age = Gauge("sangam_oldest_unpublished_age_seconds", "Age of the oldest event not confirmed", ["publisher"])
consumer_position = Gauge("sangam_consumer_position", "Last position applied", ["consumer"])
consumer_lag = Gauge("sangam_consumer_lag_positions", "Positions behind the log's head", ["consumer"])
consumed = Counter("sangam_consumed_total", "Events applied", ["consumer"])
duplicates = Counter("sangam_duplicates_skipped_total", "Events received again and skipped", ["consumer"])
healed = Counter("sangam_gap_healed_total", "Events fetched from the log instead of the broker", ["consumer"])
queue_readers = Gauge(
    "sangam_queue_readers", "Readers of the consumer's queue, as the broker counts them", ["consumer"]
)
readers_lost = Counter("sangam_readers_lost_total", "Times the broker had lost the reader of a queue", ["consumer"])
parked = Counter("sangam_parked_total", "Events parked", ["consumer"])
parked_events = Gauge("sangam_parked_events", "Events parked now", ["consumer"])
parked_streams = Gauge("sangam_parked_streams", "Streams parked now", ["consumer"])
retried = Counter("sangam_unparked_total", "Parked events applied at a retry", ["consumer"])
consumer_lag_seconds = Gauge(
    "sangam_consumer_lag_seconds", "Age of the oldest event that is not applied; 0 at the head", ["consumer"]
)
visible_seconds = Histogram(
    "sangam_commit_to_visible_seconds",
    "From an event's append to its effect being committed",
    ["consumer"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
read_models_built = Counter(
    "sangam_read_models_built_total", "Times this process built read models at its start", ["consumer"]
)
read_models_built_seconds = Gauge(
    "sangam_read_models_built_seconds", "How long building them at the start took", ["consumer"]
)
read_models_outgoing = Gauge(
    "sangam_read_models_outgoing", "1 while another version's read models are live than this process has", ["consumer"]
)

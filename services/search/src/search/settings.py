"""What this service needs beyond what every service does."""

from chassis.settings import SealingSettings


class SearchSettings(SealingSettings, frozen=True, kw_only=True):
    index_directory: str = "search-index"
    """Where the replicas on this machine keep their indexes, each in a folder of its own. May be lost: an index is
    built anew from the database. Relative to the working directory."""

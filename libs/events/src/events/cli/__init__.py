"""`sangam`, the command for those who run it: look into the log, prove it, see who is behind and what is parked."""

from events.cli.main import app

__all__ = ["app"]

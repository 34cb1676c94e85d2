"""One login for both platforms."""

"""One net worth over both platforms."""

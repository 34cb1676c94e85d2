"""One inbox for both platforms."""

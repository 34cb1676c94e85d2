"""Signed feeds in, one live stream out."""

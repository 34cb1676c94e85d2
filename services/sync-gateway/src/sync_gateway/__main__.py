"""`python -m sync_gateway` starts the service."""

from sync_gateway.main import main

main()

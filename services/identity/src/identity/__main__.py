"""`python -m identity` starts the service."""

from identity.main import main

main()

"""`python -m wealth` starts the service."""

from wealth.main import main

main()

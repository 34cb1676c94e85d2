"""`python -m notifier` starts the service."""

from notifier.main import main

main()

"""`python -m search` starts the service."""

from search.main import main

main()

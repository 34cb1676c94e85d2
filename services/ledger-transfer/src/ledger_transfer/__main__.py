"""`python -m ledger_transfer` starts the service."""

from ledger_transfer.main import main

main()

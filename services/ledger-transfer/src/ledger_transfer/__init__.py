"""One double-entry ledger over both platforms."""

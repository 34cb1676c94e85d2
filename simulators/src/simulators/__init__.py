"""BFC and Vyomo as real HTTP servers, and a seeded scenario that feeds them."""

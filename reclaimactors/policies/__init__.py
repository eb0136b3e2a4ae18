"""Built-in policies: which folio is reclaimed next."""

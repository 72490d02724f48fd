"""Real corpora: Debian packages fetched, and sets of records made from them."""

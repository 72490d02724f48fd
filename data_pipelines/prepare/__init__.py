"""Offline: from raw corpora and raw web pages to checked, split and sharded records. Needs the extra [prepare]."""

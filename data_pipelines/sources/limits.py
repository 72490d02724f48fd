"""How much a source reads for one record."""

from data_pipelines.images import FILE_LIMIT

RECORD_LIMIT = FILE_LIMIT
"""Bytes of one record in its file (a line, an object, the members of a key); larger ones are bad records."""

"""File formats, read from bytes that somebody else fetched: no I/O here, no torch."""

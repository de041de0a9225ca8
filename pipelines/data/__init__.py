"""Text: sources, records, packing, the cache of scores."""

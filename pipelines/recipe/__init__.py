"""Settings: the schema, YAML and overrides made into one checked Config."""

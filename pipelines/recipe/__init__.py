"""Settings: merge the schema, YAML and overrides into one checked Config."""

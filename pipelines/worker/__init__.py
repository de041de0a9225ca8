"""The process of a rank: reads the stage's config.yaml, runs the stage."""

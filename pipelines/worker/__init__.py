"""The process of a rank: it reads the stage's config.yaml and runs the stage."""

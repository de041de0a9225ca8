"""Code shared by the gradient stages: engine, trainer, callbacks, packed data."""

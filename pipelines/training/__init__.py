"""What gradient stages share: engine, trainer, callbacks, packed data."""

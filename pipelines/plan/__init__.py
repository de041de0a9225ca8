"""Which stages, in which order, with which identity, at which cost."""

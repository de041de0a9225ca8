"""Plan a run: which stages, in which order, with which identity and at which cost."""

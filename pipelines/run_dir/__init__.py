"""The run directory: paths of all files, atomic writes, the ledger, the lock."""

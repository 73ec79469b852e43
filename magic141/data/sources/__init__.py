"""Which clips a corpus has: its files, windows, splits and units of work."""

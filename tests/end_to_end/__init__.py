"""The command line on the smoke config, as a user runs it."""

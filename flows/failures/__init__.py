"""Failures foreseen before any work, explained in one line, and how to go on after them."""

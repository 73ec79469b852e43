"""Training: the loop and its engines, and one objective a module."""

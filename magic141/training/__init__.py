"""Training: the loop, its engines, and one module per objective."""

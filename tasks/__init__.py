"""The pipeline's stages: one thin module per stage over the library, and what runs them."""

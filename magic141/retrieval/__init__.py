"""Text to image retrieval: the CLIP model, the index, and the image prior built on them."""

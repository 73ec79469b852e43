"""Networks: the video transformer, the latent codec and the encoders of the conditions."""

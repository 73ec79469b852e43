"""Tests of magic141/diffusion."""

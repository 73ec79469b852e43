"""Tests of magic141/training/dmd2."""

"""Tests of magic141/data/sources."""

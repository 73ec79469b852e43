"""Tests of magic141/data."""

"""Tests of magic141/retrieval."""

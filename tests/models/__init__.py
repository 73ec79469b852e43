"""Tests of magic141/models."""

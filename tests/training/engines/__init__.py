"""Tests of magic141/training/engines."""

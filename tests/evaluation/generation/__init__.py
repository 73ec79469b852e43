"""Tests of magic141/evaluation/generation."""

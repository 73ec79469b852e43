"""Tests of magic141/evaluation/scoring."""

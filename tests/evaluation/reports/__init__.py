"""Tests of magic141/evaluation/reports."""

"""Tests of flows.records."""

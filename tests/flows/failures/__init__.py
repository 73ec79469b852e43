"""Tests of flows.failures."""

"""Tests of flows.orchestration."""

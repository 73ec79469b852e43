"""Tests of flows.command_line."""

"""Artifacts: references and keys, digests of content and of code, and how a result becomes visible."""

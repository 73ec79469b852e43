"""Engines: a trained network with its optimizer, gradient accumulation and weight average."""

"""Stage `evaluate`: exact scores, Fréchet distances and VBench."""

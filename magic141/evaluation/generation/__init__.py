"""Stage `generate`: the videos that variants are judged by, and what making them takes."""

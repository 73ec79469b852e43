"""What is found out before a run: its stages and their needs, whether it fits, the members of a sweep."""

"""Pixels of video and image files as a viewer would see them, and back."""

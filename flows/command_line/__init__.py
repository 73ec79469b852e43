"""What all commands share: their options, what they work on, what they print and how they end."""

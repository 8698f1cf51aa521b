"""Models: where they come from, what they read, and how they score it."""

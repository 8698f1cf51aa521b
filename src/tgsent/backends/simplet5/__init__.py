"""T5 through the package SimpleT5, in an environment of its own."""

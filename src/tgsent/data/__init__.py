"""Data files, samples and splits."""

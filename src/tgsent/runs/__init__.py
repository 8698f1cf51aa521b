"""The run folder: written, read back and combined."""

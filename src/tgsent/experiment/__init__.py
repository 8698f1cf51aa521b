"""Trials, and what drives them."""

"""Predictions and the statistics on them."""

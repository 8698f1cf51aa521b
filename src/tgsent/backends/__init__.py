"""What trains and predicts: native, SimpleT5, or a baseline."""

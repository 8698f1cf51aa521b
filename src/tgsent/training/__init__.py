"""Fine-tuning: the training loop and everything it needs."""

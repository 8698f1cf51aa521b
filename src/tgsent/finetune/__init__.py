"""Fine-tuning: one loop, and what differs between the model families."""

"""Fine-tune generative language models to classify texts, and trust the number."""

__version__ = "0.1.0"

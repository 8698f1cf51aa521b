"""The learning rate that `auto` becomes, by family, size and way of training."""

from __future__ import annotations

import math

from tgsent.config import SIMPLET5_LEARNING_RATE, TrainingConfig
from tgsent.modeling import seq2seq
from tgsent.modeling.family import Family

# (maximum number of parameters, learning rate), in ascending order; docs/recipes.md has the links
_CAUSAL = (
    (0.5e9, 6.25e-5),  # Radford et al. 2018, fine-tuning GPT (117M)
    (2.0e9, 2.0e-5),  # the default of TRL's SFTTrainer; Stanford Alpaca, LLaMA 7B
    (math.inf, 1.0e-5),  # Stanford Alpaca, LLaMA 13B
)
_SEQ2SEQ = (
    (1.0e9, 3.0e-4),  # Hugging Face's T5 guide: 1e-4 and 3e-4 work with AdamW
    (math.inf, 1.0e-4),  # the same
)
_CAUSAL_LORA = 2.0e-4  # Hu et al. 2021, GPT-2; Dettmers et al. 2023, models of 7B and 13B
_SEQ2SEQ_LORA = 3.0e-4  # adapters need no lower rate than the model itself, whatever its size
_TINY = 1.0e-3  # measured: all three tiny models learn; above it two collapse in some runs
_RANDOM = 3.0e-4  # a usual value for training from nothing, not a measured one


def learning_rate(training: TrainingConfig, family: Family, parameters: int) -> float:
    """Resolve `learning_rate` for a model with this many parameters, adapters left out."""
    if training.backend == "simplet5":
        return SIMPLET5_LEARNING_RATE
    if training.learning_rate != "auto":
        return training.learning_rate
    if training.init == "tiny":
        return _TINY
    if training.init == "random":
        return _RANDOM
    if training.lora is not None:
        return _SEQ2SEQ_LORA if family is seq2seq else _CAUSAL_LORA
    table = _SEQ2SEQ if family is seq2seq else _CAUSAL
    return next(rate for most, rate in table if parameters <= most)

"""The config: YAML, checked whole, into frozen sections; and the settings of one trial."""

from tgsent.config.load import SHIPPED, load, shipped
from tgsent.config.run import ModelConfig, RunConfig, SweepConfig, SweepRange
from tgsent.config.sections import (
    DataConfig,
    EngineConfig,
    EvaluationConfig,
    LoraConfig,
    PromptConfig,
    Section,
    SimpleT5Config,
    TrainingConfig,
    label_words_problem,
    resolve_calibration,
)
from tgsent.config.simplet5 import LEARNING_RATE as SIMPLET5_LEARNING_RATE
from tgsent.config.trial import TrialSpec

__all__ = [
    "SHIPPED", "SIMPLET5_LEARNING_RATE", "DataConfig", "EngineConfig", "EvaluationConfig",
    "LoraConfig", "ModelConfig", "PromptConfig", "RunConfig", "Section",
    "SimpleT5Config", "SweepConfig", "SweepRange", "TrainingConfig", "TrialSpec",
    "label_words_problem", "load", "resolve_calibration", "shipped",
]  # fmt: skip

from typing import get_args

from tgsent.backends.registry import BACKENDS, backend_of
from tgsent.config import TrainingConfig
from tgsent.config.aliases import BASELINES
from tiny_models import tiny_spec


def test_every_backend_and_baseline_of_the_config_is_there() -> None:
    backends = get_args(TrainingConfig.model_fields["backend"].annotation)
    assert BACKENDS.keys() == {*backends, *BASELINES}


def test_only_baselines_have_no_training_settings() -> None:
    for name in BACKENDS:
        is_baseline = name in BASELINES
        training = {} if is_baseline else {"backend": name}
        spec = tiny_spec(name if is_baseline else "t5", training=training)
        backend = backend_of(spec)
        assert type(backend).__name__ == BACKENDS[name].rpartition(".")[2]
        assert (backend.settings(spec) is None) == is_baseline


def test_the_package_simplet5_has_settings_of_its_own() -> None:
    spec = tiny_spec("t5", training={"backend": "simplet5"})
    settings = backend_of(spec).settings(spec)
    assert settings is not None
    assert (settings.learning_rate, settings.warmup_steps, settings.max_grad_norm) == (
        1e-4,
        0,
        None,
    )
    assert (settings.padding, settings.precision) == ("max_tokens", "fp32")
    assert settings.epochs == spec.training.epochs

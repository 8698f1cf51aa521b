import pytest

from tgsent.terminal import without_secrets


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD"])
def test_values_of_secret_variables_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hf_planted_0123")
    assert without_secrets("a hf_planted_0123 b:hf_planted_0123") == "a *** b:***"


def test_other_variables_and_short_values_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_NAME", "hf_planted_0123")
    monkeypatch.setenv("HF_TOKEN", "gpt2")
    assert without_secrets("hf_planted_0123 gpt2") == "hf_planted_0123 gpt2"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://me:pass@hub.org/x cannot", "https://***@hub.org/x cannot"),
        ("http://token@127.0.0.1:80", "http://***@127.0.0.1:80"),
        ("https://hub.org/a@b", "https://hub.org/a@b"), ("gpt2@main", "gpt2@main"),
    ],
)  # fmt: skip
def test_credentials_in_addresses_are_hidden(text: str, hidden: str) -> None:
    assert without_secrets(text) == hidden

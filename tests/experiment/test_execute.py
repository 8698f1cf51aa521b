"""The way of a run, from the command to the optimizer."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import tgsent
from tgsent import cli


def test_at_most_six_frames_lead_from_the_command_to_the_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = torch.optim.AdamW.step
    ways: list[list[str]] = []

    def noted(optimizer: torch.optim.AdamW, *args: Any, **named: Any) -> Any:
        ways.append(way_to(sys._getframe(1)))
        return step(optimizer, *args, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    overrides = ["data.sample_size=60", "data.test_fraction=0.2", "training.epochs=1"]
    cli.run("smoke", ["gpt2"], 1, output=str(tmp_path), overrides=overrides, quiet=True)
    assert ways
    for way in ways:
        assert way[:2] == ["cli.run", "execute.run"]
        assert len(way) <= 6, way


def way_to(frame: FrameType | None) -> list[str]:
    """Name the functions of tgsent that are being called, the outermost first."""
    found = []
    root = Path(tgsent.__file__).parent
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(root):
            found.append(f"{file.stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]

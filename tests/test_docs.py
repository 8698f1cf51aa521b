"""What the documents say holds: generated pages are fresh, commands and shipped files exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import simplet5_problem
from tgsent.config import SHIPPED, load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_configuration_reference_and_default_config_are_fresh():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_reference.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_ci_runs_the_test_command_of_the_readme():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    (command,) = [block.splitlines()[-1] for block in blocks if "pass the checks" in block]
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == command


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name):
    assert load(name).name == name


def test_example_commands_of_the_readme_are_accepted(cli, tmp_path):
    (tmp_path / "my.yaml").write_text("trials: 1\n")
    (tmp_path / "reviews.csv").write_text(
        "text,label\n" + "".join(f"text {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    )
    (tmp_path / "TWEETS.csv").write_bytes((ROOT / "data" / "sample_tweets.csv").read_bytes())
    text = README.replace("\\\n", " ")
    commands = re.findall(r"^tgsent (run .*?)(?: +#.*| >.*)?$", text, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = shlex.split(command)
        size = "1000" if "extra_test_size" in command else "null"
        tiny = ["--set", "training.init=tiny", "--set", f"data.sample_size={size}", "--dry-run"]
        if not any("data.path" in part for part in arguments):
            tiny += ["--set", "data.path=sample"]
        done = cli(*arguments, *tiny)
        lacking = re.search("article|simplet5", command) and simplet5_problem()
        assert done.returncode == (3 if lacking else 0), (command, done.stderr)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_of_the_readme_lead_somewhere(link):
    assert (ROOT / link).exists()

"""What the documents say holds: generated pages are fresh, commands and shipped files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import cli_environment, simplet5_problem
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


def test_the_page_of_models_is_fresh():
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "make_models_page.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ci_runs_the_test_command_of_the_readme():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    (command,) = [block.splitlines()[-1] for block in blocks if "pass the checks" in block]
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == command


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name):
    assert load(name).name == name


def test_example_commands_of_the_readme_are_accepted(cli, tmp_path):
    (tmp_path / "my.yaml").write_text("trials: 1\n")
    (shown,) = re.findall(r"```yaml\n(# sweep.yaml\n.*?)```", README, flags=re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(shown)
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


@pytest.mark.parametrize("name", ["report.html", "report.md", "results.json", "results.csv"])
def test_the_example_report_is_what_its_run_folder_gives(name, cli, tmp_path):
    done = cli("report", "docs/example", "-o", str(tmp_path / name), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).read_bytes() == (ROOT / "docs/example" / name).read_bytes()
    assert "made-up texts" in (ROOT / "docs/example/report.html").read_text("utf-8")


def test_report_and_predict_do_what_the_readme_shows(cli, tmp_path):
    (tmp_path / "reviews.csv").write_text(
        "text,label\n" + "".join(f"text {i},{'good' if i % 2 else 'bad'}\n" for i in range(60))
    )
    (tmp_path / "new.csv").write_text("n,body\n1,a text\n2,another\n")
    (tmp_path / "texts.txt").write_text("a text\nanother\n")
    shown = r"^((?:cat .*)?tgsent (?:report|predict) .*?)(?: +#.*)?$"
    commands = re.findall(shown, README, re.MULTILINE)
    assert len(commands) >= 5
    (training,) = re.findall(r"^tgsent (run .*save_model=first)$", README, re.MULTILINE)
    tiny = ["--set", "training.init=tiny", "--set", "training.epochs=1", "-n", "1"]
    for name in ("default", "other"):
        done = cli(*shlex.split(training), *tiny, "--set", f"name={name}")
        assert done.returncode == 0, done.stderr
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=cli_environment({"PATH": path}),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        if "--json" in command:
            assert len(done.stdout.splitlines()) == 2
    assert (tmp_path / "both.html").read_text().startswith("<!doctype html>")
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 3

"""What the documents say holds: generated pages are fresh, commands work, links and files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cli_process
from conftest import ROOT, cli_environment, simplet5_problem
from tgsent.config import SHIPPED, load

sys.path.insert(0, str(ROOT / "scripts"))

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "docs/example/report.md"]
}
GUIDES = [name for name in PAGES if name not in {"CHANGELOG.md", "docs/example/report.md"}]


def shown(pattern, pages=GUIDES):
    """Return what matches in the pages, each once, with continued lines joined."""
    text = "\n".join(PAGES[name].replace("\\\n", " ") for name in pages)
    return list(dict.fromkeys(re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)))


def write_inputs(folder):
    """Write the files that the documented commands read."""
    for name, labels in (("reviews", ("bad", "good")), ("stars", (0, 1, 2))):
        rows = [f"text {i},{labels[i % len(labels)]}\n" for i in range(60)]
        (folder / f"{name}.csv").write_text("".join(["text,label\n", *rows]))
    tweets = (ROOT / "data" / "sample_tweets.csv").read_text("iso-8859-1").splitlines()
    copies = [f'{row[:-1]} {copy}"\n' for row in tweets for copy in range(3)]
    (folder / "TWEETS.csv").write_text("".join(copies), "iso-8859-1")
    (folder / "my.yaml").write_text("trials: 1\n")
    (folder / "new.csv").write_text("n,body\n1,a text\n2,another\n")
    (folder / "texts.txt").write_text("a text\nanother\n")
    for name, config in shown(r"```yaml\n# (\w+\.yaml)\n(.*?)```"):
        (folder / name).write_text(config)


def test_configuration_reference_and_default_config_are_fresh():
    import make_reference

    for name, content in (
        ("docs/configuration.md", make_reference.reference()),
        ("configs/default.yaml", make_reference.default_config()),
    ):
        assert (ROOT / name).read_text("utf-8") == content, "run scripts/make_reference.py"


def write_page_of_models(path):
    import make_models_page

    path.write_text(make_models_page.page(), "utf-8")


def test_the_page_of_models_is_fresh(tmp_path):
    path = tmp_path / "models.md"
    process = cli_process.server().Process(target=write_page_of_models, args=(path,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    assert PAGES["docs/models.md"] == path.read_text("utf-8"), "run scripts/make_models_page.py"


def test_ci_runs_the_test_command_of_the_readme():
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    (command,) = [block.splitlines()[-1] for block in blocks if "pass the checks" in block]
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == command


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_valid(name):
    assert load(name).name == name


def test_configs_shown_are_valid(tmp_path):
    write_inputs(tmp_path)
    names = [name for name, _ in shown(r"```yaml\n# (\w+\.yaml)\n(.*?)```")]
    assert len(names) >= 3
    for name in names:
        assert load(str(tmp_path / name)).models


def prepare_runs(commands, folder):
    """Run commands up to their first trial; raise ValueError where one is refused."""
    from tgsent import cli
    from tgsent.errors import UnavailableError
    from tgsent.experiment import execute, sweep

    def prepare(*args):
        execute.PendingRun(*args)
        raise SystemExit

    execute.run = sweep.run = prepare
    os.chdir(folder)
    for arguments, lacks_package in commands:
        try:
            cli.app(arguments, standalone_mode=False)
        except SystemExit:
            continue
        except Exception as error:
            if not (lacks_package and isinstance(error, UnavailableError)):
                raise ValueError(f"tgsent {shlex.join(arguments)}") from error


def test_commands_shown_are_accepted(tmp_path):
    write_inputs(tmp_path)
    commands = shown(r"^tgsent (run[^\n]*?)(?: +#[^\n]*| >[^\n]*)?$")
    assert len(commands) >= 20
    prepared = []
    for command in commands:
        has_data = " -d " in command
        size = "data.sample_size=60" if "TWEETS" in command or not has_data else ""
        path = "" if has_data else "data.path=sample"
        changed = ["training.init=tiny", *filter(None, (size, path))]
        lacking = re.search("article|simplet5", command) and simplet5_problem()
        arguments = shlex.split(command) + [part for s in changed for part in ("--set", s)]
        prepared.append((arguments, bool(lacking)))
    process = cli_process.server().Process(target=prepare_runs, args=(prepared, tmp_path))
    process.start()
    process.join(300)
    assert process.exitcode == 0


def slug(heading):
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), flags=re.MULTILINE)
            assert anchor in map(slug, headings), link


@pytest.mark.parametrize("page", GUIDES)
def test_files_named_in_the_text_exist(page):
    for name in re.findall(r"`((?:src|tests|scripts|docs|configs)/[\w./-]+)", PAGES[page]):
        assert (ROOT / name).exists(), name


def test_every_page_is_in_the_index_and_the_index_in_the_readme():
    linked = set(re.findall(r"\]\(([^)#]+)", PAGES["docs/README.md"]))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= linked
    assert "](docs/README.md)" in README


@pytest.mark.parametrize("name", ["report.html", "report.md", "results.json", "results.csv"])
def test_the_example_report_is_what_its_run_folder_gives(name, cli, tmp_path):
    done = cli("report", "docs/example", "-o", str(tmp_path / name), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).read_bytes() == (ROOT / "docs/example" / name).read_bytes()
    assert "made-up texts" in (ROOT / "docs/example/report.html").read_text("utf-8")


def test_report_and_predict_do_what_is_shown(cli, tmp_path):
    write_inputs(tmp_path)
    commands = shown(r"^((?:cat [^\n]*)?tgsent (?:report|predict) [^\n]*?)(?: +#[^\n]*)?$")
    assert len(commands) >= 5
    (training,) = {tuple(shlex.split(run)) for run in shown(r"^tgsent (run [^\n]*=first)$")}
    tiny = ["--set", "training.init=tiny", "--set", "training.epochs=1", "-n", "1"]
    for name in ("kept", "default", "other"):
        done = cli(*training, *tiny, "--set", f"name={name}")
        assert done.returncode == 0, done.stderr
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for command in commands:
        if re.search("[|>]", command):
            done = subprocess.run(
                ["sh", "-c", command], cwd=tmp_path, env=cli_environment({"PATH": path}),
                capture_output=True, text=True,
            )  # fmt: skip
        else:
            done = cli(*shlex.split(command)[1:])
        assert done.returncode == 0, (command, done.stderr)
        if "--json" in command:
            assert len(done.stdout.splitlines()) == 2
    assert (tmp_path / "both.html").read_text().startswith("<!doctype html>")
    assert len((tmp_path / "answers.csv").read_text().splitlines()) == 3

from __future__ import annotations

import csv
import html.parser
import json
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import browser
import run_folders
from tgsent.evaluation.metrics import Summary
from tgsent.records import LabelScores
from tgsent.report import pages, results
from tgsent.report.results import ModelResults
from tgsent.report.sections import confusions
from tgsent.runs import stored
from tgsent.runs.stored import StoredRun
from tgsent.terminal import printable

VOID = {"meta", "link", "line", "circle", "polyline", "img", "br"}


class Reader(html.parser.HTMLParser):
    """Collects elements and visible text, and sees to it that what is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.make(
        tmp_path_factory.mktemp("run"),
        models=("majority", "tfidf", "gpt2", "t5"),
        overrides=["models.3.as=T5 &lt; co", "training.max_tokens=24"],
    )


@pytest.fixture(scope="module")
def run(folder: Path) -> StoredRun:
    return stored.read(folder)


@pytest.fixture(scope="module")
def page(run: StoredRun) -> str:
    return pages.html(results.of_runs(run), run)


@pytest.fixture(scope="module")
def markdown(run: StoredRun) -> str:
    return pages.markdown_page(results.of_runs(run), run)


def test_every_run_has_both_pages_and_they_can_be_made_again(
    folder: Path, page: str, markdown: str
) -> None:
    assert (folder / "report.html").read_text("utf-8") == page
    assert (folder / "report.md").read_text("utf-8") == markdown


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    reader = Reader(page)
    assert reader.open == []
    tags = {tag for tag, _ in reader.tags}
    assert not tags & {"script", "iframe", "img", "object", "form"}
    links = [attrs.get("href") or attrs.get("src") for _, attrs in reader.tags]
    assert {link for link in links if link} == {"data:,"}
    assert "@import" not in page
    assert "url(" not in page


def test_plots_have_words_for_those_who_do_not_see_them(page: str) -> None:
    drawings = [attrs for tag, attrs in Reader(page).tags if tag == "svg"]
    told = [attrs["aria-label"] for attrs in drawings if attrs.get("role") == "img"]
    assert [re.split("[.;]", label or "")[0] for label in told] == [
        "Macro-F1 of the trials and their mean",
        "Differences in macro-F1 of every two models",
        "Accuracy over confidence in the first trial",
        "Training loss",
    ]
    assert all(attrs.get("aria-hidden") for attrs in drawings if attrs.get("role") != "img")


def test_both_pages_tell_the_whole_story(folder: Path, page: str, markdown: str) -> None:
    result = json.loads((folder / "results.json").read_bytes())
    text = " ".join(Reader(page).text.split())
    plain = markdown.replace("\\", "")
    for told in (
        *result["verdict"], result["signature"], *(one["sentence"] for one in result["comparisons"])
    ):  # fmt: skip
        assert " ".join(told.split()) in text
    for model in result["models"]:
        for trial in model["trials"]:
            assert f"{trial['macro_f1']:.4f}" in text
            assert f"{trial['macro_f1']:.4f}" in plain
        if example := model["trials"][0]["example"]:
            assert " ".join(printable("".join(example)).split()) in text
            assert json.dumps(printable(example[0]), ensure_ascii=False) in markdown
    for told in (
        "expected calibration error", "texts were truncated to training.max",
        "Texts that most models got wrong",
        "Wrong answers that tfidf was surest of", "Time and memory", "learning_rate",
        "warmup_steps, resolved", "max_grad_norm, resolved", "padding, resolved",
        result["manifest"]["data"]["sha256"], result["manifest"]["splits"][1]["sha256"],
    ):  # fmt: skip
        assert told in text
        assert told in plain
    assert "was surest of" in text
    assert "majority was surest of" not in text  # it is as sure of everything
    assert result["signature"] in markdown


def test_mistakes_are_those_of_the_predictions(folder: Path, page: str) -> None:
    wrong = []
    for number in (1, 2):
        with (folder / f"tfidf/trial-{number}/predictions.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["predicted"] != row["label"]]
        wrong += [(max(float(v) for k, v in row.items() if k.startswith("p_")), row["text"])
                  for row in rows]  # fmt: skip
    probability, text = max(wrong)
    told = Reader(page).text.split("Wrong answers that tfidf was surest of")[1]
    shown = text.replace("\x1b", "\\x1b")
    assert " ".join(shown.split()) in " ".join(told.split())
    assert f"{probability:.3f}" in told


def test_texts_are_text(page: str, markdown: str) -> None:
    reader = Reader(page)
    for hostile in run_folders.HOSTILE:
        if "\x1b" not in hostile and hostile in reader.text:
            break
    else:
        pytest.fail("no hostile text is shown: the test tests nothing")
    assert "\x1b" not in page + markdown
    assert "T5 &lt; co" in reader.text
    assert not any(tag in {"i", "b"} for tag, _ in reader.tags)
    rendered = Reader(MarkdownIt("commonmark").enable("table").render(markdown))
    assert not {tag for tag, _ in rendered.tags} & {"script", "img", "i", "b", "a"}
    for line in markdown.splitlines():
        if line.startswith("| `a "):  # a text: its row has as many cells as the header
            assert len(re.findall(r"(?<!\\)\|", line)) in {4, 5}


def test_secrets_are_found_whatever_they_are_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a&b_<c>_d*e")
    texts = [f'"call @you hf_a&b_<c>_d*e {i}",{"ab"[i % 2]}' for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *texts]))
    folder = run_folders.make(
        tmp_path, models=("tfidf", "gpt2"), trials=1, texts=tmp_path / "t.csv"
    )
    for name in ("report.html", "report.md"):
        page = (folder / name).read_text()
        assert "call @you ***" in page
        assert "hf_a" not in page.replace("\\", "")
    told = (folder / "report.md").read_text()
    shown = [line for line in told.splitlines() if "@you" in line and line.startswith("|")]
    assert shown
    assert all("`" in line.split("@you")[0] for line in shown)


def test_many_trials_and_labels_stay_readable() -> None:
    labels = [f"label {i}" for i in range(20)]
    confusion = {one: {other: 5 if one == other else 0 for other in labels} for one in labels}
    confusion["label 3"]["label 4"] = 7
    trial = run_folders.metrics_of(
        confusion=confusion, per_label=dict.fromkeys(labels, LabelScores(1.0, 1.0, 1.0, 5))
    )
    found = confusions(ModelResults("it", (trial, trial), (), Summary()))
    assert found.rows == [["label 3", "label 4", "14"]]


def test_a_run_without_any_finished_trial_has_a_page(tmp_path: Path) -> None:
    run_folders.write_texts(tmp_path / "few.csv", 8)
    folder = run_folders.make(
        tmp_path,
        models=("tfidf",),
        overrides=["data.test_fraction=0.5"],
        texts=tmp_path / "few.csv",
    )
    assert (
        "tfidf trial 1 failed: tfidf: the label"
        in Reader((folder / "report.html").read_text()).text
    )
    assert "No trial is finished." in (folder / "report.md").read_text()


@pytest.mark.skipif(browser.PROGRAM is None, reason="needs Chromium, which this machine lacks")
def test_in_a_browser_nothing_is_asked_for_and_nothing_sticks_out(
    folder: Path, tmp_path: Path
) -> None:
    with browser.browser(tmp_path / "profile") as shown:
        for width in (360, 800, 1400):
            for dark in (False, True):
                shown.show(folder / "report.html", width, dark=dark)
                assert shown.value("innerWidth") == width
                assert shown.value("document.documentElement.scrollWidth") <= width
                background = shown.value("getComputedStyle(document.body).backgroundColor")
                assert (background == "rgb(255, 255, 255)") != dark
                cut = shown.value(
                    "[...document.querySelectorAll('svg text')].filter(t => {"
                    " const [a, b] = [t.getBoundingClientRect(),"
                    " t.ownerSVGElement.getBoundingClientRect()];"
                    " return a.left < b.left - 1 || a.right > b.right + 1; }).length"
                )
                assert cut == 0
        assert set(shown.requests) == {(folder / "report.html").as_uri()}
        assert shown.complaints == []

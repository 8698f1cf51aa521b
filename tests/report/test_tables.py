from __future__ import annotations

import csv
import io
from dataclasses import replace

from rich.console import Console

from run_folders import manifest_of, metrics_of
from tgsent.evaluation.metrics import Summary
from tgsent.evaluation.significance import Comparison
from tgsent.records import Scores
from tgsent.report.results import FailedTrial, ModelResults, Results
from tgsent.report.tables import notes, results_csv, results_table, sentences
from tgsent.runs.manifest import Article
from tgsent.runs.metrics import TrialMetrics


def trial(model: str, number: int, macro_f1: float, unparsed: int = 0) -> TrialMetrics:
    return metrics_of(
        model=model, trial=number, seed=number, macro_f1=macro_f1, unparsed=unparsed,
        truncated=2 * unparsed, truncated_tokens=20 * unparsed,
        warnings=('answers "x" to every text',) if macro_f1 < 0.75 else (),
    )  # fmt: skip


GPT2 = ModelResults(
    model="gpt2",
    trials=(trial("gpt2", 1, 0.8, 3), trial("gpt2", 2, 0.9, 1)),
    failed=(),
    macro_f1=Summary(0.85, 0.0707, (0.2147, 1.4853), (0.8, 0.91)),
)
T5 = ModelResults(
    model="t5",
    trials=(trial("t5", 2, 0.7),),
    failed=(FailedTrial(1, "the loss is nan"),),
    macro_f1=Summary(0.7),
)
ODD = ModelResults(model="[b]odd", trials=(), failed=(), macro_f1=Summary())
COMPARISON = Comparison("gpt2", "t5", 10, 0.1, (-0.1, 0.3), 2, 1, 1.0, 1.0, (2,), False, None)


def results(*models: ModelResults, trials: int = 2, article: Article | None = None) -> Results:
    """Three models in two trials: both done; one done, one failed; none done."""
    return Results(
        name="mine",
        signature="tgsent:1|seed:1+2",
        verdict=("gpt2 is best.", "That is chance."),
        models=models or (GPT2, T5, ODD),
        comparisons=(COMPARISON,),
        manifest=manifest_of(trials=trials, article=article),
    )


def render(values: Results) -> list[list[str]]:
    """The table's cells, row by row, the header first."""
    file = io.StringIO()
    Console(file=file, width=200).print(results_table(values))
    lines = [line.replace("┃", "│") for line in file.getvalue().splitlines()]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_the_table_has_a_row_per_model_and_a_column_per_trial() -> None:
    header, gpt2, t5, odd = render(results())
    assert header == ["model", "trial 1", "trial 2", "mean", "std", "95 %", "unparsed", "training"]
    assert gpt2 == ["gpt2", "0.8000", "0.9000", "0.8500", "0.0707", "0.800-0.910", "20.0%", "25 s"]
    assert t5 == ["t5", "failed", "0.7000", "0.7000", "-", "-", "0.0%", "12 s"]
    assert odd == ["[b]odd", "-", "-", "-", "-", "-", "-", "-"]


def test_the_table_shows_published_numbers_where_there_are_any() -> None:
    article = Article({"gpt2": 0.817}, sample_size=10_000, trials=3)
    rows = render(results(article=article))
    assert [row[-1] for row in rows] == ["article", "0.817", "-", "-"]


def test_the_table_shows_the_hash_of_each_split() -> None:
    table = results_table(results())
    assert table.title == "mine: macro-F1"
    assert table.caption == (
        "10 test texts a trial, the same for all models\nsplits 1:111111111111 2:222222222222"
    )


def test_the_csv_has_a_row_per_finished_trial() -> None:
    text = results_csv(results(), escape_formulas=True)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(r["model"], r["trial"], r["macro_f1"], r["signature"]) for r in rows] == [
        ("gpt2", "1", "0.8", "tgsent:0|a,b"),
        ("gpt2", "2", "0.9", "tgsent:0|a,b"),
        ("t5", "2", "0.7", "tgsent:0|a,b"),
    ]
    assert all(None not in row for row in rows)
    assert "\r" not in text


def test_the_csv_of_no_results_is_a_header() -> None:
    text = results_csv(results(ODD), escape_formulas=True)
    assert text.startswith("model,trial,seed,macro_f1,")
    assert text.count("\n") == 1


def test_what_was_cut_and_what_is_suspect_is_told() -> None:
    assert notes(results()) == [
        "gpt2: 8 texts were truncated to training.max_tokens (80 tokens lost)",
        "gpt2: 4 answers are no label and count as wrong",
        'warning: t5 trial 2: answers "x" to every text',
    ]


def test_a_formula_as_a_models_name_is_escaped_unless_told_otherwise() -> None:
    model = replace(GPT2, trials=(trial("=1+1", 1, 0.8),))
    for escape, name in ((True, "'=1+1"), (False, "=1+1")):
        text = results_csv(results(model), escape_formulas=escape)
        assert [row["model"] for row in csv.DictReader(io.StringIO(text))] == [name]


def test_sentences() -> None:
    assert sentences(results()) == [
        "gpt2 is best. That is chance.", COMPARISON.sentence,
        "tgsent:1|seed:1+2",
    ]  # fmt: skip


def test_a_table_with_more_test_texts_has_both_scores() -> None:
    everything = Scores(1_010, 0.81, 0.5, {}, {}, 0)
    gpt2 = replace(
        GPT2,
        trials=(replace(GPT2.trials[0], all=everything), GPT2.trials[1]),
        macro_f1_all=Summary(0.81, bootstrap95=(0.79, 0.83)),
    )
    values = results(gpt2, T5, ODD)
    header, *rows = render(values)
    assert header[6:8] == ["all", "all, 95 %"]
    assert [row[6:8] for row in rows] == [["0.8100", "0.790-0.830"], ["-", "-"], ["-", "-"]]
    assert "all: with 1,000 more from outside the sample" in str(results_table(values).caption)


def test_many_trials_have_no_columns_of_their_own() -> None:
    gpt2 = replace(GPT2, trials=tuple(trial("gpt2", k, k / 100) for k in range(1, 31)))
    header, gpt2_row, odd = render(results(gpt2, ODD, trials=30))
    assert header[:5] == ["model", "trials", "lowest", "highest", "mean"]
    assert gpt2_row[:4] == ["gpt2", "30", "0.0100", "0.3000"]
    assert odd[1:4] == ["0", "-", "-"]

"""What commands import once they know what is to be done, under the variables that they set."""

import importlib

from tgsent import cli

cli._progress(quiet=True)  # sets variables that libraries read while they are imported

for _name in (
    "tgsent.cli",
    "tgsent.experiment.execute",
    "tgsent.experiment.local_engine",
    "tgsent.backends.native",
    "tgsent.backends.baselines",
    "tgsent.experiment.plan",
    "tgsent.experiment.predict",
    "tgsent.experiment.sweep",
    "tgsent.report.model_card",
    "tgsent.report.pages",
    "tgsent.report.results",
    "tgsent.data.dataset",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt_neo.modeling_gpt_neo",
    "transformers.models.t5.modeling_t5",
    "transformers.models.auto.modeling_auto",
    "transformers.generation.utils",
    "pyarrow.parquet",
    "sklearn.linear_model",
    "sklearn.feature_extraction.text",
    "sklearn.pipeline",
    "rich.table",
    "torch._dynamo",
):
    importlib.import_module(_name)

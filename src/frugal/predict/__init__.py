"""`frugal predict RUN`: what a finished run makes of new input: text that goes on from a prompt, classes of texts and
images, classes or quantities of the rows of a table.

Works from the artefact or the checkpoint alone, which says how to build the network and how its input was prepared.
What it says of itself (speed, what could not be read) goes to stderr, so that stdout is the result alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from frugal import settings
from frugal.compose import compose, quote
from frugal.errors import RefusedError, SettingsError
from frugal.paths import find_weights

HELP = """usage: frugal predict RUN_OR_ARTEFACT [KEY=VALUE ...]

A language model goes on from a prompt:
  frugal predict RUN prompt="To be" generate.tokens=500 generate.temperature=0.7 seed=1
    generate.tokens=256        tokens to generate
    generate.samples=1         continuations
    generate.temperature=0.8   0: always the likeliest token
    generate.top_k=null        draw from the k likeliest tokens only
    generate.top_p=null        draw from the likeliest tokens that hold this much probability
    generate.cache=true        of keys and values; false computes each token from scratch
    seed=0                     of the draws
    prompt=null                null: the beginning of a document; input=FILE (or -) reads the prompt from there

A text classifier labels texts:
  frugal predict RUN input=texts.txt                      one text a line, - is standard input
  frugal predict RUN input=table.csv column=review output=labels.csv
    column=text                of a .csv or .tsv file, the column that holds the texts
  Each line or row gives one row; that of an empty text has no label.

What was trained on images or tables labels these, or says quantities in the target's own units:
  frugal predict RUN input=photo.jpg                      an image, or a folder of them and of folders
  frugal predict RUN input=samples.npy output=labels.jsonl
  frugal predict RUN input=table.csv                      a sample a row; columns by their names, else by order
  curl ... | frugal predict RUN input=-                   an image, an .npy or rows of CSV
  Each image or row gives one row; what cannot be read has no label, and says why under error. The exit code is 0 as
  long as one could be read. Rows are counted from 0.

Of all but language models:
    output=null                a file, written whole or not at all; null: stdout, as it comes
    format=null                csv, or jsonl with the probabilities of all classes; null: by output's name, else csv
    batch_size=64

RUN_OR_ARTEFACT is a run's folder, a .ckpt checkpoint or an artefact (.safetensors, .frugal, .onnx, .pt2).
threads=N sets torch's threads.
"""


def main(words: Sequence[str]) -> int:
    """The verb. Raises FrugalError for bad input."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    cfg = _settings(words)
    path = find_weights(Path(str(cfg.source)).expanduser())
    import torch

    from frugal import artefact

    torch.set_num_threads(int(cfg.threads or 1))  # batches are small: a second thread mostly waits
    network, description = artefact.load(path)
    if description.task == "language_modeling":
        from frugal.predict.text import go_on

        go_on(cfg, network, description, path)
        return 0
    if cfg.input is None:
        raise SettingsError("input=null: name what to classify: input=FILE, or input=- for standard input")
    if description.task == "text_classification":
        from frugal.predict.text import classify

        classify(cfg, network, description, path)
    elif description.task in ("classification", "regression"):
        from frugal.predict.arrays import predict

        predict(cfg, network, description, path)
    else:
        raise RefusedError(f"{path}: was trained for {description.task}, of which nothing can be predicted")
    return 0


def _settings(words: Sequence[str]) -> DictConfig:
    flag = next((word for word in words if word.startswith("-")), None)
    if flag is not None:
        raise SettingsError(f"{flag}: predict takes KEY=VALUE only, see frugal predict --help")
    given = list(words)
    for index, word in enumerate(given):
        if "=" not in word or Path(word).exists():
            given[index] = f"source={quote(str(Path(word).expanduser().resolve()))}"
            break
    # `prompt=To be, or not`: what a shell gives as one word is one text, whatever Hydra's grammar would read into it
    for index, word in enumerate(given):
        key, _, value = word.partition("=")
        if key in ("prompt", "input", "output", "column") and value != "null":
            given[index] = f"{key}={quote(value)}"
    cfg, _ = compose("predict", given)
    if "source" not in {word.split("=")[0] for word in given}:
        raise SettingsError("predict: name a run, a checkpoint or an artefact: frugal predict RUN [KEY=VALUE ...]")
    settings.check_values(cfg)
    return cfg

"""Composing: where options are searched, one-line errors with the nearest name, and what a resume's words become."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from command import TINY, frugal, runs
from frugal.compose import compose, expand_resume, quote
from frugal.errors import SettingsError
from frugal.record import Record

pytest_plugins = ("users_home",)


def option(home: Path, path: str, text: str, folder: str = "configs") -> Path:
    file = home / folder / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


# ------------------------------------------------------------------------------------------------------ the search path
def test_a_users_option_stands_beside_the_shipped_ones(home: Path) -> None:
    cfg, choices = compose("train", ["model=dropout_net"])
    assert cfg.model.network._target_ == "mine.DropoutNet" and choices["model"] == "dropout_net"
    cfg, _ = compose("train", ["model=lenet5"])
    assert cfg.model.network._target_ == "frugal.models.lenet5.LeNet5"


def test_a_users_option_of_a_shipped_name_takes_its_place(home: Path) -> None:
    option(home, "optim/momentum.yaml", "_target_: frugal.optim.optimizers.SGD\n_partial_: true\nlr: 0.25\n")
    cfg, _ = compose("train", [])
    assert cfg.optim == {"_target_": "frugal.optim.optimizers.SGD", "_partial_": True, "lr": 0.25}


def test_configs_are_those_of_the_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)
    with pytest.raises(SettingsError, match="model=dropout_net"):
        compose("train", ["model=dropout_net"])


def test_config_dir(home: Path, tmp_path: Path) -> None:
    option(home, "optim/far.yaml", "_target_: frugal.optim.optimizers.SGD\n_partial_: true\nlr: 0.125\n", "elsewhere")
    assert "optim=far: unknown" in frugal("train", *TINY, "optim=far").error
    assert frugal("train", "--config-dir", "elsewhere", *TINY, "optim=far").code == 0
    (run,) = runs(tmp_path / "logs")
    record = Record.read(run)
    assert record.config["optim"]["lr"] == 0.125 and record.config["choices"]["optim"] == "far"
    assert run.name.startswith("far-")
    # in a sweep the option is found too, and the job that was done is known again
    outcome = frugal("train", "-m", "--config-dir", "elsewhere", *TINY, "optim=far,sgd")
    assert outcome.code == 0 and outcome.out.count("Running ") == 1


def test_an_experiment_of_the_users(home: Path) -> None:
    option(
        home,
        "experiment/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /model: lenet5\n  - override /optim: adam\n"
        "run: {experiment: mine}\noptim: {lr: 0.5}\nseed: 3\n",
    )
    cfg, choices = compose("train", ["experiment=mine"])
    assert (choices["model"], choices["optim"], choices["experiment"]) == ("lenet5", "adam", "mine")
    assert (cfg.run.experiment, cfg.optim.lr, cfg.seed) == ("mine", 0.5, 3)
    cfg, choices = compose("train", ["optim=sgd", "experiment=mine", "seed=4"])  # the command line has the last word
    assert (choices["optim"], cfg.seed) == ("sgd", 4)


def test_a_model_may_bring_its_optimizer(home: Path) -> None:
    shipped, _ = compose("train", [])
    node = OmegaConf.to_yaml(shipped.model)
    option(home, "model/with_adam.yaml", f"defaults:\n  - override /optim@_global_.optim: adam\n{node}")
    cfg, choices = compose("train", ["model=with_adam"])
    assert "Adam" in cfg.optim._target_ and choices["optim"] == "adam"
    _, choices = compose("train", ["model=with_adam", "optim=sgd"])
    assert choices["optim"] == "sgd"


def test_hydras_part_is_no_part_of_a_job(home: Path) -> None:
    cfg, choices = compose("train", [])
    assert "hydra" not in cfg and not any(group.startswith("hydra") for group in choices)
    assert choices["model"] == "simple_net" and choices["experiment"] is None


# ------------------------------------------------------------------------------------------------------ one-line errors
@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["model=simple"], "model=simple: unknown; did you mean simple_net?"),
        (["model=zzz"], "model=zzz: unknown; valid are bag_of_ngrams, broken, dropout_net, "),
        (["modl=lenet5"], "modl=lenet5: unknown; did you mean model?"),
        (["optim.lrr=1"], "optim.lrr=1: unknown; did you mean optim.lr?"),
        (["optim=adam", "optim.beta=1"], "optim.beta=1: unknown; did you mean optim.betas?"),
        (["model=dropout_net", "model.netwrk.width=1"], "did you mean model.network?"),
        (["trainer.max_epoch=1"], "trainer.max_epoch=1: unknown; did you mean trainer.max_epochs?"),
        (["trainer.max_epochs=1", "trainer.max_epochs=x"], "trainer.max_epochs=x: needs a whole number"),
        (["run.checkpoint_every_s=often"], "run.checkpoint_every_s=often: needs a number"),
        (["trainer.detect_anomaly=maybe"], "trainer.detect_anomaly=maybe: needs true or false"),
        (["run.tags=a"], "run.tags=a: "),
        (["seed=1.5"], "seed=1.5: "),
        (["debug=one"], "debug=one: unknown; did you mean one_batch?"),
        (["~optim.lrr"], "optim.lrr"),
        (["seed"], "seed: cannot be read as KEY=VALUE"),
        (["=1"], "=1: "),
        (["seed=1,2"], "seed"),
        (["model=null"], "model=null: a group takes the name of one of its options"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(overrides: list[str], says: str, home: Path) -> None:
    with pytest.raises(SettingsError) as error:
        compose("train", overrides)
    assert says in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_an_option_file_that_is_no_yaml_is_named(home: Path) -> None:
    option(home, "optim/bad.yaml", "lr: [1\n")
    outcome = frugal("train", "optim=bad")
    assert "bad.yaml" in outcome.error


def test_an_option_file_with_a_key_that_the_schema_has_not(home: Path) -> None:
    option(home, "trainer/long.yaml", "max_epoch: 3\n")
    assert "max_epoch" in (line := frugal("train", "trainer=long").error) and "did you mean" in line


# ------------------------------------------------------------------------------------------------------ run.resume=RUN
@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a run's folder, with = and [signs]"
    folder.mkdir()
    (folder / "overrides.yaml").write_text(yaml.safe_dump(["model=lenet5", "optim.lr=0.5", "+callbacks.x=null"]))
    return folder


def test_a_resumed_runs_own_words_come_first(run: Path) -> None:
    words = expand_resume(["trainer.max_epochs=20", f"run.resume={run}"])
    assert words == [
        "model=lenet5",
        "optim.lr=0.5",
        "+callbacks.x=null",
        "trainer.max_epochs=20",
        f"run.resume={quote(str(run))}",
    ]


def test_what_the_command_gives_again_is_the_commands(run: Path) -> None:
    words = expand_resume([f"run.resume={run}", "optim.lr=0.1", "~callbacks.x"])
    assert words == ["model=lenet5", f"run.resume={quote(str(run))}", "optim.lr=0.1", "~callbacks.x"]


def test_a_resume_composes_whatever_signs_its_path_has(run: Path, home: Path) -> None:
    cfg, choices = compose(
        "train", expand_resume([f"run.resume={run}"])[:2] + expand_resume([f"run.resume={run}"])[-1:]
    )
    assert cfg.run.resume == str(run) and choices["model"] == "lenet5" and cfg.optim.lr == 0.5


@pytest.mark.parametrize("value", ["true", "false", "True", ""])
def test_true_and_false_are_no_folders(value: str) -> None:
    assert expand_resume([f"run.resume={value}", "seed=1"]) == [f"run.resume={value}", "seed=1"]


def test_a_resume_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no run's folder"):
        expand_resume([f"run.resume={tmp_path}"])


@pytest.mark.parametrize(
    "value", ["it's", 'a "b"', "a,b", "a=b", "{x}", "[1]", "back\\slash", "trailing\\", "$x", "é", "a b", "'"]
)
def test_quote(value: str, home: Path) -> None:
    cfg, _ = compose("train", [f"run.experiment={quote(value)}"])
    assert cfg.run.experiment == value

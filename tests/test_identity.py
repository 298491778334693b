"""Identity: two jobs have one hash when they are the same job, and a name that a person can read."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import pytest

from command import forget
from frugal import identity, settings
from frugal.compose import compose
from frugal.identity import Identity, identify, short_name

pytest_plugins = ("users_home",)


def of(*overrides: str, verb: str = "train") -> Identity:
    return identify(*compose(verb, list(overrides)), verb)


def test_the_order_of_the_words_changes_nothing(home: Path) -> None:
    words = ("model=lenet5", "optim=adam", "optim.lr=0.5", "seed=3")
    assert len({of(*order) for order in list(permutations(words))[::5]}) == 1


def test_saying_a_default_changes_nothing(home: Path) -> None:
    plain = of()
    assert of("model=simple_net", "data=digits", "seed=0", "optim.lr=0.01", "trainer.max_epochs=10") == plain
    assert plain.name == "defaults"
    assert of("optim.lr=1e-2") == plain


@pytest.mark.parametrize(
    "words",
    [
        ["paths.data_dir=/elsewhere"],
        ["paths.log_dir=/elsewhere"],
        ["logger=none"],
        ["logger=wandb", "logger.wandb.project=x"],
        ["run.experiment=other"],
        ["run.tags=[a,b]"],
        ["run.resume=true"],
        ["run.checkpoint_every_s=1"],
        ["run.checkpoint_every_steps=1"],
    ],
    ids=" ".join,
)
def test_where_it_goes_and_who_is_told_is_not_what_it_is(words: list[str], home: Path) -> None:
    assert of("model=lenet5", *words) == of("model=lenet5")


@pytest.mark.parametrize(
    "word",
    [
        "seed=1",
        "model=lenet5",
        "data.batch_size=32",
        "data.source.size=8",
        "preprocess=shifts",
        "schedule=cosine",
        "callbacks=early_stopping",
        "trainer.max_epochs=11",
        "precision=bf16",
        "optim.lr=0.02",
        "model.network.hidden=[256,64]",
        "model.label_smoothing=0.1",
        "measure=none",
        "run.weights=best",
        "run.target=0.9",
        "~optim.weight_decay",
        "+model.metrics.x=1",
    ],
)
def test_what_changes_a_run_changes_its_hash(word: str, home: Path) -> None:
    assert of(word).hash != of().hash


def test_no_two_of_many_settings_share_a_hash(home: Path) -> None:
    hashes = [
        of(f"model={m}", f"optim.lr={lr}", f"seed={s}").hash
        for m in ("simple_net", "lenet5")
        for lr in (0.1, 1)
        for s in (0, 10)
    ]
    assert len(set(hashes)) == 8


def test_types_are_told_apart(home: Path) -> None:
    assert of("+model.x=1").hash != of("+model.x='1'").hash
    assert of("+model.x=null").hash != of("+model.x=none").hash
    assert of("+model.x=null").hash != of().hash


def test_a_new_setting_with_a_default_changes_no_old_hash(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an option of the user's, in the schema, and as a new group in train.yaml."""
    before = [of(*words) for words in (["model=dropout_net"], ["model=dropout_net", "optim.lr=0.5"], ["seed=3"], [])]
    option = home / "configs" / "model" / "dropout_net.yaml"
    option.write_text(option.read_text().replace("DropoutNet}", "DropoutNet, width: 16}") + "label_noise: 0.0\n")
    (home / "configs" / "measure").mkdir()
    shipped = settings.config_folder()
    (home / "configs" / "optim").mkdir()
    text = (shipped / "optim" / "momentum.yaml").read_text()
    (home / "configs" / "optim" / "momentum.yaml").write_text(text + "maximize: false\n")
    train = (shipped / "train.yaml").read_text()
    (home / "configs" / "train.yaml").write_text(train.replace("  - pruning: null\n", "  - pruning: none\n"))
    (home / "configs" / "pruning").mkdir()
    (home / "configs" / "pruning" / "none.yaml").write_text("# No pruning.\n_target_: null\ndensity: 1.0\n")
    forget()
    after = [of(*words) for words in (["model=dropout_net"], ["model=dropout_net", "optim.lr=0.5"], ["seed=3"], [])]
    cfg, choices = compose("train", ["model=dropout_net"])
    assert cfg.model.label_noise == 0.0 and cfg.optim.maximize is False and choices["pruning"] == "none"
    assert [(i.name, i.hash) for i in after] == [(i.name, i.hash) for i in before]
    assert of("pruning.density=0.5").hash != of().hash
    assert after[0].source_sha256 != before[0].source_sha256  # but the source is another


def test_an_experiment_is_not_its_settings_written_out(home: Path) -> None:
    """An experiment is a choice like any other; what differs from it differs from the hash of the experiment too."""
    plain, changed = of("experiment=article"), of("experiment=article", "optim.lr=0.5")
    assert plain.hash != changed.hash
    assert plain.name == "defaults" and changed.name == "lr0.5"
    assert of("experiment=article", "data=mnist", "optim.lr=0.01").hash == plain.hash
    assert of("experiment=article", "model=lenet5").name == "lenet5"
    assert of("experiment=article", "model=lenet5", "optim.lr=0.5").name == "lenet5-lr0.5"


def test_verbs_are_told_apart(home: Path) -> None:
    assert of("source=a/b", verb="evaluate").hash != of("source=a/c", verb="evaluate").hash
    assert of("source=a/b", verb="evaluate").name == "b"
    assert of("source=a/b/checkpoints/last.ckpt", verb="evaluate").name == "b-last"


# ---------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "defaults"),
        (["seed=0"], "defaults"),
        (["seed=1"], "seed1"),
        (["seed=2", "model=lenet5", "optim.lr=0.5"], "lenet5-lr0.5-seed2"),
        (["data=mnist", "model=lenet5"], "mnist-lenet5"),
        (["model.network.hidden=[32,16]"], "hidden32x16"),
        (["measure=none"], "defaults"),
        (["callbacks=early_stopping", "preprocess=none"], "early_stopping-no_preprocess"),
        (["trainer.max_epochs=3"], "max_epochs3"),
        (["optim=adam", "optim.lr=0.001"], "adam"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_names(words: list[str], name: str, home: Path) -> None:
    assert of(*words).name == name


def test_names_are_short_and_safe() -> None:
    strange = {"a.b": "x/../y z\n$(rm)", "c": "é'\"\\", "d": None, "e": [1, [2]], "f": "~", "g": True}
    names = [
        short_name({"model": "lenet5"}, strange),
        short_name({f"group{i}": f"option_{i}" for i in range(30)}, {}),
        short_name({}, {f"k{i}": i for i in range(60)}),
        short_name({}, {"source": "/"}),
        short_name({}, {"source": ".."}),
        short_name({}, {"source": "../.."}),
        short_name({"model": None}, {}),
        short_name({}, {"": ""}),
        short_name({}, {"x": "."}),
    ]
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9._+-]+", name), name
        assert 0 < len(name) <= 80
        assert not name.startswith(".") and "/" not in name and name not in (".", "..")


def test_a_long_name_still_tells_runs_apart_by_its_hash(home: Path) -> None:
    words = [
        f"trainer.{key}={value}"
        for key, value in (
            ("max_epochs", 3),
            ("max_steps", 1000),
            ("log_every_n_steps", 7),
            ("accumulate_grad_batches", 4),
            ("limit_train_batches", 10),
            ("limit_val_batches", 10),
        )
    ]
    one, two = of(*words, "seed=1"), of(*words, "seed=2")
    assert len(one.name) <= 80 and one.hash != two.hash


# --------------------------------------------------------------------------------------------------------------- source
def test_the_sources_hash_follows_the_users_files(home: Path) -> None:
    def now() -> str:
        forget()
        return identity.source_sha256()

    first = now()
    assert now() == first
    module = home / "mine" / "__init__.py"
    text = module.read_text()
    module.write_text(text + "\n# a comment\n")
    second = now()
    module.write_text(text)
    assert second != first and now() == first
    (home / "mine" / "more.py").write_text("x = 1\n")
    assert now() != first
    (home / "mine" / "more.py").unlink()
    (home / "configs" / "model" / "dropout_net.yaml").write_text("# other\n")
    assert now() != first


def test_the_sources_hash_follows_no_other_files(home: Path) -> None:
    first = identity.source_sha256()
    (home / "notes.py").write_text("x = 1\n")
    (home / "mine" / "data.bin").write_bytes(b"1")
    (home / "mine" / "__pycache__").mkdir()
    (home / "mine" / "__pycache__" / "x.py").write_text("x = 1\n")
    forget()
    assert identity.source_sha256() == first


def test_a_renamed_file_is_another_source(home: Path) -> None:
    (home / "mine" / "a.py").write_text("x = 1\n")
    forget()
    first = identity.source_sha256()
    (home / "mine" / "a.py").rename(home / "mine" / "b.py")
    forget()
    assert identity.source_sha256() != first


def test_the_datas_hash(home: Path) -> None:
    digits, small = (identity.data_sha256(compose("train", words)[0]) for words in ([], ["data.source.size=8"]))
    mnist = identity.data_sha256(compose("train", ["data=mnist"])[0])  # known before a byte of it is there
    assert len({digits, small, mnist}) == 3 and all(
        re.fullmatch("[0-9a-f]{64}", text) for text in (digits, small, mnist)
    )
    assert identity.data_sha256(compose("train", ["data=mnist", "paths.data_dir=/elsewhere"])[0]) == mnist


# ------------------------------------------------------------- what a job takes from elsewhere, as it is at the moment
def test_an_option_of_another_folder_belongs_to_the_source(home: Path, tmp_path: Path) -> None:
    option = tmp_path / "more" / "optim" / "mine.yaml"
    option.parent.mkdir(parents=True)
    sources = [{"provider": "command-line", "schema": "file", "path": str(tmp_path / "more")}]
    option.write_text("lr: 0.1\n")
    before = identity.source_sha256(sources)
    assert before != identity.source_sha256()
    option.write_text("lr: 0.2\n")
    forget()
    assert identity.source_sha256(sources) != before


def test_a_package_of_one_file_belongs_to_the_source(home: Path) -> None:
    (home / "pyproject.toml").write_text('[tool.frugal]\npackages = ["single"]\n')
    (home / "single.py").write_text("A = 1\n")
    forget()
    before = identity.source_sha256()
    (home / "single.py").write_text("A = 2\n")
    forget()
    assert identity.source_sha256() != before


def test_a_value_from_the_environment_counts_by_what_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = 'optim.lr="${oc.decode:${oc.env:RATE}}"'
    monkeypatch.setenv("RATE", "0.1")
    one = of(word)
    monkeypatch.setenv("RATE", "0.2")
    assert of(word).hash != one.hash


def test_weights_to_start_from_count_by_their_content(home: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    first = of(f"model.init_from={weights}")
    weights.write_bytes(b"two")
    assert of(f"model.init_from={weights}").hash != first.hash


def test_one_and_one_point_zero_are_one_value(home: Path) -> None:
    assert of("optim.lr=1").hash == of("optim.lr=1.0").hash

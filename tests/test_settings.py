"""Settings: rules between options, the allow-list of `instantiate`, and signatures as schemas."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from omegaconf import OmegaConf

from frugal import settings
from frugal.compose import compose
from frugal.errors import RefusedError, SettingsError

pytest_plugins = ("users_home",)


# ------------------------------------------------------------------------------------ a signature as a node's schema
@settings.configurable
class Target:
    """One parameter of each kind that a configuration may set."""

    def __init__(
        self,
        needed: int,
        rate: float = 0.1,
        flag: bool = False,
        name: str = "a",
        mode: Literal["low", "high"] = "low",
        size: Literal[28, 8] = 28,
        widths: list[int] | None = None,
        pair: tuple[float, float] = (0.9, 0.999),
        steps: int | float = 1,
        maybe: float | None = None,
        table: dict[str, float] | None = None,
        inner: Any = None,
        passed: object = None,
    ) -> None:
        self.__dict__.update(locals())


def build(**values: Any) -> Target:
    return settings.instantiate({"_target_": f"{__name__}.Target", **values}, "node")


@pytest.fixture(autouse=True)
def _this_module_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from frugal import instantiate

    monkeypatch.setattr(instantiate, "PACKAGES", (*instantiate.PACKAGES, __name__))


def test_fitting_values_arrive_as_they_are() -> None:
    made = build(
        needed=3, rate=0.5, flag=True, name="b", mode="high", size=8, widths=[1, 2], pair=[0.1, 0.2], table={"a": 1.5}
    )
    assert (made.needed, made.rate, made.flag, made.name, made.mode, made.size) == (3, 0.5, True, "b", "high", 8)
    assert made.widths == [1, 2] and list(made.pair) == [0.1, 0.2] and made.table == {"a": 1.5}


@pytest.mark.parametrize(("given", "kind"), [(2, int), (2.5, float)])
def test_int_or_float_keeps_what_it_was(given: float, kind: type) -> None:
    assert type(build(needed=1, steps=given).steps) is kind


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    assert type(build(needed=1, rate=1).rate) is float
    assert type(build(needed=1, maybe=1).maybe) is float
    assert build(needed=1, maybe=None).maybe is None
    assert [type(value) for value in build(needed=1, pair=[1, 0]).pair] == [float, float]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("needed", 1.0, "node.needed=1.0: needs a whole number"),
        ("needed", True, "node.needed=True: needs a whole number"),
        ("needed", "1", "node.needed=1: needs a whole number"),
        ("needed", None, "node.needed=None: needs a whole number"),
        ("rate", "0.1", "node.rate=0.1: needs a number"),
        ("rate", True, "node.rate=True: needs a number"),
        ("rate", [0.1], "node.rate=[0.1]: needs a number"),
        ("flag", 1, "node.flag=1: needs true or false"),
        ("flag", "yes", "node.flag=yes: needs true or false"),
        ("name", 3, "node.name=3: needs text"),
        ("mode", "hi", "node.mode=hi: unknown; did you mean high?"),
        ("mode", None, "node.mode=None: unknown; valid are high, low"),
        ("size", 9, "node.size=9: unknown; valid are 28, 8"),
        ("size", "8", "node.size=8: "),
        ("widths", 3, "node.widths=3: needs a list, as in node.widths=[1,2]"),
        ("widths", "12", "node.widths=12: needs a list"),
        ("widths", [1, 2.5], "node.widths.1=2.5: needs a whole number"),
        ("pair", [0.1, "x"], "node.pair.1=x: needs a number"),
        ("maybe", "x", "node.maybe=x: needs a number"),
        ("ratee", 1, "node.ratee=1: unknown; did you mean rate?"),
        ("zzzzzz", 1, "node.zzzzzz=1: unknown; valid are "),
    ],
)
def test_a_wrong_value_is_refused_by_name(key: str, value: Any, says: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(**{"needed": 1, key: value})
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_a_value_that_is_needed_and_not_there() -> None:
    with pytest.raises(SettingsError, match=r"^node\.needed: needs a value$"):
        build()


def test_nodes_below_a_node_are_built_first() -> None:
    inner = {"_target_": f"{__name__}.Target", "needed": 2}
    made = build(needed=1, inner=inner)
    assert isinstance(made.inner, Target) and made.inner.needed == 2
    made = build(needed=1, inner=[inner, {"deep": inner}])
    assert made.inner[0].needed == 2 and made.inner[1]["deep"].needed == 2
    with pytest.raises(SettingsError, match=r"^node\.inner\.1\.needed=x: needs a whole number"):
        build(needed=1, inner=[3, {**inner, "needed": "x"}])


def test_what_code_passes_is_not_for_the_configuration() -> None:
    node = {"_target_": f"{__name__}.Target", "needed": 1}
    assert settings.instantiate(node, "node", passed=build).passed is build
    with pytest.raises(SettingsError) as error:
        settings.instantiate({**node, "pass": 1}, "node", passed=build)
    assert "passed" not in str(error.value)


def test_a_value_for_what_code_passes_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"node\.passed"):
        settings.instantiate({"_target_": f"{__name__}.Target", "needed": 1, "passed": 1}, "node", passed=build)


def test_partial() -> None:
    node = {"_target_": "frugal.optim.optimizers.SGD", "_partial_": True, "lr": 1}
    made = settings.instantiate(node, "optim")
    assert isinstance(made, functools.partial)
    optimizer = made([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["lr"] == 1.0
    with pytest.raises(SettingsError, match=r"optim\.lrr"):
        settings.instantiate({**node, "lrr": 1}, "optim")


def test_torch_and_lightning_and_torchmetrics_are_built() -> None:
    pairs: Sequence[tuple[dict[str, Any], str]] = (
        ({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, "Linear"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}, "EarlyStopping"),
        ({"_target_": "torchmetrics.classification.MulticlassAccuracy", "num_classes": 3}, "MulticlassAccuracy"),
    )
    for node, name in pairs:
        assert type(settings.instantiate(node, "node")).__name__ == name


# ----------------------------------------------------------------------------------------------------- the allow-list
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "eval",
        "torch.utils.collect_env.run",
        "torch.hub.load",
        "torch.load",
        "torch.nn.Module.__init__",
        "torch.nn.modules.module.torch.load",
        "torch.nn.functional.relu",
        "frugal.settings.instantiate",
        "frugal.record.write_atomic",
        "frugal.folder.shutil.rmtree",
        "frugal.folder.os.system",
        "frugal.build.build_network",
        "frugal.settings.configurable",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.utilities.seed.os.system",
        "hydra.utils.instantiate",
        "torch",
        "torch.nn",
        "torch..nn",
        ".torch",
        "torch.",
        "frugal.",
        "",
        3,
        ["os.system"],
        {"_target_": "os.system"},
    ],
    ids=str,
)
def test_a_target_that_may_not_be_built(target: Any) -> None:
    with pytest.raises(SettingsError) as error:
        settings.instantiate({"_target_": target}, "node")
    assert "node" in str(error.value) and "\n" not in str(error.value)


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="there is no such class"):
        settings.instantiate({"_target_": "frugal.models.lenet5.LeNet6"}, "node")
    with pytest.raises(SettingsError, match=r"node\._target_=frugal\.models\.lenet6\.LeNet5"):
        settings.instantiate({"_target_": "frugal.models.lenet6.LeNet5"}, "node")


def test_targets_are_found_wherever_they_stand() -> None:
    bad = {"_target_": "os.system"}
    for cfg, key in (
        ({"a": bad}, "a._target_=os.system"),
        ({"a": {"b": [1, {"c": bad}]}}, "a.b.1.c._target_=os.system"),
        ({"model": {"_target_": "torch.nn.Linear", "x": bad}}, "model.x._target_=os.system"),
    ):
        with pytest.raises(SettingsError) as error:
            settings.check_targets(OmegaConf.create(cfg))
        assert str(error.value).startswith(key)
    settings.check_targets({"a": {"_target_": "torch.nn.Linear"}, "b": {"_target_": None}})


def test_a_target_that_an_interpolation_makes(tmp_path: Path) -> None:
    """What is checked is what is built, however it was spelled."""
    marker = tmp_path / "executed"
    cfg = OmegaConf.create({"x": "os.system", "node": {"_target_": "${x}", "command": f"touch {marker}"}})
    with pytest.raises(SettingsError, match=r"os\.system"):
        settings.instantiate(cfg.node, "node")
    assert not marker.exists()


def test_a_users_package_is_added_in_pyproject_alone(home: Path) -> None:
    node = {"_target_": "mine.DropoutNet", "input_shape": [1, 28, 28], "classes": 10}
    from frugal.instantiate import add_working_directory

    add_working_directory()
    assert type(settings.instantiate(node, "model.network")).__module__ == "mine"
    (home / "pyproject.toml").write_text("[tool.frugal]\npackages = []\n")
    with pytest.raises(SettingsError, match=r"pyproject\.toml: \[tool\.frugal\] packages = \[\"mine\"\]"):
        settings.instantiate(node, "model.network")
    (home / "pyproject.toml").unlink()
    with pytest.raises(SettingsError, match="not from an allowed package"):
        settings.instantiate(node, "model.network")
    (home / "pyproject.toml").write_text("[tool.frugal\n")
    with pytest.raises(SettingsError, match=r"pyproject\.toml"):
        settings.instantiate(node, "model.network")
    (home / "pyproject.toml").write_text('[tool.frugal]\npackages = "mine"\n')
    with pytest.raises(SettingsError, match=r"packages"):
        settings.instantiate({"_target_": "m.x"}, "node")


def test_a_users_function_is_built_only_when_marked(home: Path) -> None:
    from frugal.instantiate import add_working_directory

    add_working_directory()
    (home / "mine" / "functions.py").write_text(
        "from frugal import settings\n"
        "def plain(x: int) -> int: return x\n"
        "@settings.configurable\n"
        "def marked(x: int) -> int: return x + 1\n"
    )
    assert settings.instantiate({"_target_": "mine.functions.marked", "x": 1}, "node") == 2
    with pytest.raises(SettingsError, match=r"not marked with frugal\.settings\.configurable"):
        settings.instantiate({"_target_": "mine.functions.plain", "x": 1}, "node")
    with pytest.raises(SettingsError, match=r"node\.x=a: needs a whole number"):
        settings.instantiate({"_target_": "mine.functions.marked", "x": "a"}, "node")


# ----------------------------------------------------------------------------------------------- what Hydra builds
@pytest.mark.parametrize(
    "node",
    [
        {"callbacks": {"x": {"_target_": "os.system"}}},
        {"launcher": {"_target_": "torch.utils.collect_env.run"}},
        {"sweeper": {"_target_": "subprocess.run"}},
        {"sweeper": {"sampler": {"_target_": "builtins.eval"}}},
        {"launcher": {"_target_": "hydrax.evil"}},
        {"launcher": {"_target_": "frugal.folder.shutil.rmtree", "path": "somewhere"}},
        {"launcher": {"_target_": "hydra._internal.utils.os.system"}},
        {"callbacks": {"x": {"_target_": "frugal.manifest.subprocess.Popen", "args": ["true"]}}},
        {"callbacks": {"x": {"_target_": "hydra.utils.get_method", "path": "os.system"}}},
        {"job_logging": {"handlers": {"x": {"()": "os.system"}}}},
        {"job_logging": {"handlers": {"x": {"class": "torch.utils.collect_env.run"}}}},
        {"job_logging": {"formatters": {"x": {"()": "subprocess.getoutput"}}}},
        {"hydra_logging": {"filters": {"x": {"()": "ext://os.system"}}}},
        {"hydra_logging": {"handlers": {"x": {"class": "logging.config.os.system"}}}},
        {"job_logging": {"handlers": {"x": {"class": "logging.StreamHandler", "stream": "ext://os.environ"}}}},
        {"job_logging": {"handlers": {"x": {"class": "frugal.folder.os.system"}}}},
        {"job_logging": {"handlers": {"x": {"class": "logging.os.system"}}}},
    ],
    ids=str,
)
def test_hydras_own_targets(node: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="hydra"):
        settings.check_hydra(OmegaConf.create(node))


def test_hydras_own_plugins_and_log_handlers_are_let_through() -> None:
    settings.check_hydra(
        OmegaConf.create(
            {
                "launcher": {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"},
                "callbacks": {"sweep": {"_target_": "frugal.job.SweepFolder"}},
                "job_logging": {
                    "formatters": {"simple": {"format": "%(message)s", "class": "logging.Formatter"}},
                    "handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
                },
            }
        )
    )


# ---------------------------------------------------------------------------------------------- values, combinations
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("trainer.max_epochs=null", "trainer.max_steps"),
        ("+trainer.max_epoch=1", "did you mean trainer.max_epochs?"),
        ("+run.tag=[a]", "did you mean run.tags?"),
        ("+measure.batch=[1]", "did you mean measure.batches?"),
        ("+paths.logs=x", "did you mean paths.log_dir?"),
        ("+sead=1", "did you mean seed?"),
        ("run.experiment=/elsewhere", "below paths.log_dir"),
        ("run.experiment=a/../../b", "below paths.log_dir"),
        ("run.mode=up", "valid are max, min"),
        ("trainer.accumulate_grad_batches=0", "the least value is 1"),
        ("data.batch_size=1.5", "needs a whole number"),
        ("trainer.val_check_interval=often", "needs a number"),
        ("precision.mode=8", "precision.mode=8"),
    ],
)
def test_values(override: str, says: str, home: Path) -> None:
    with pytest.raises(SettingsError) as error:
        cfg, _ = compose("train", [override])
        settings.check_values(cfg)
    assert says in str(error.value)


def test_every_value_of_the_schema_passes(home: Path) -> None:
    for override in (
        "run.experiment=a/b",
        "trainer.max_epochs=null trainer.max_steps=5",
        "trainer.limit_val_batches=3",
    ):
        cfg, _ = compose("train", override.split())
        settings.check_values(cfg)


def test_needs_and_excludes(home: Path) -> None:
    """A made-up option says beside itself what it needs and what it cannot stand."""
    option = home / "configs" / "pruning" / "halve.yaml"
    option.parent.mkdir()
    option.write_text(
        "needs: {data.task: [classification], model.network.activation: relu}\n"
        "excludes: {optim.lr: [1.0, 2.0], 'quantization.name': [fp8], distillation._target_: {mine.Taught: no time}}\n"
        "_target_: mine.Halve\n"
    )

    def check(*overrides: str) -> None:
        settings.check_rules(*compose("train", ["pruning=halve", *overrides]))

    check()
    check("+quantization.name=int8")
    for overrides, says in (
        (
            ("model.network.activation=gelu",),
            "pruning=halve needs model.network.activation to be relu, model=simple_net has gelu",
        ),
        (("optim.lr=2.0",), "pruning=halve cannot be combined with optim.lr=2.0"),
        (("+quantization.name=fp8",), "pruning=halve cannot be combined with quantization.name=fp8"),
        (("model=dropout_net",), "pruning=halve needs model.network.activation to be relu, model=dropout_net has None"),
        (("distillation._target_=mine.Taught",), "pruning=halve cannot be combined with distillation=none: no time"),
    ):
        with pytest.raises(RefusedError) as error:
            check(*overrides)
        assert str(error.value) == says


def test_callbacks_nested_one_level_too_deep(home: Path) -> None:
    folder = home / "configs" / "callbacks"
    folder.mkdir()
    (folder / "deep.yaml").write_text("mine:\n  early:\n    _target_: lightning.pytorch.callbacks.EarlyStopping\n")
    cfg, _ = compose("train", ["callbacks=deep"])
    with pytest.raises(SettingsError, match=r"^callbacks\.mine: has no _target_.* one level too deep\?"):
        settings.check_values(cfg)
    cfg, _ = compose("train", ["callbacks=early_stopping", "callbacks.early_stopping=null"])
    settings.check_values(cfg)  # switched off is not misspelled


def test_a_value_that_is_missing_is_named(home: Path) -> None:
    cfg, _ = compose("train", ["optim.lr=???"])
    with pytest.raises(SettingsError, match="lr"):
        settings.plain(cfg)

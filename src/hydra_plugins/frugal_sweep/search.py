"""`sweep=random`, `tpe` and `pareto`: Optuna proposes the jobs, and what it knows survives a kill.

The search has a folder of a fixed name, and in it an SQLite file with every trial. The same command continues: trials
that were finished count, those that were cut off are tried again, and `sweep.trials` is the number of all of them.
Trials are proposed as many at a time as the launcher runs side by side.
"""

# No `from __future__ import annotations` here: Hydra loads plugins in a way that dataclasses do not survive with it.
import fcntl
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("frugal")

STATE = "search.sqlite"


@dataclass
class SearchConf:
    _target_: str = "hydra_plugins.frugal_sweep.search.Search"
    sampler: str = "tpe"  # random, tpe, nsga2
    population: int = 12  # of nsga2: trials a generation
    params: dict[str, str] = field(default_factory=dict)  # what is searched where the command names nothing


ConfigStore.instance().store(group="hydra/sweeper", name="search", node=SearchConf, provider="frugal")


class Search(Sweeper):
    """Asks Optuna for trials and tells it what they reached; a failed or refused job is a failed trial."""

    config: DictConfig  # from `setup` on
    launcher: Launcher

    def __init__(self, sampler: str, population: int, params: DictConfig | None = None) -> None:
        self.sampler, self.population, self.params = (
            sampler,
            population,
            {str(key): value for key, value in (params or {}).items()},
        )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from frugal import console
        from frugal.errors import SettingsError
        from frugal.objectives import Objective

        try:
            import optuna
        except ImportError:
            raise SettingsError("sweep: a search needs Optuna: pip install 'frugal-ml[sweep]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

        settings = self.config.sweep
        if settings.trials < 1:
            raise SettingsError(f"sweep.trials={settings.trials}: the least value is 1")
        objectives = [Objective.parse(str(text)) for text in settings.objectives]
        if not objectives:
            raise SettingsError("sweep.objectives: name one or more, as in sweep.objectives=[accuracy]")
        if any(objective.key == "latency" for objective in objectives) and self.config.measure.latency == "none":
            raise SettingsError("sweep.objectives: latency is not measured; set measure=quick")
        fixed, space = parameters(self.params, arguments)
        folder = Path(str(self.config.hydra.sweep.dir))
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "search.lock", "w") as lock:
            _acquire(lock, folder)
            study = self._open(folder, objectives)
            before = len(study.get_trials(deepcopy=False))
            again(study)
            if before:
                console.say(
                    f"Continuing the search in {folder}: {finished(study)} of {settings.trials} trials are done"
                )
            while (left := int(settings.trials) - finished(study)) > 0:
                self._run([study.ask() for _ in range(min(left, self._at_once()))], study, fixed, space, objectives)
            self._say_best(study, objectives)

    def _at_once(self) -> int:
        return int(getattr(self.launcher, "at_once", None) or self.config.launch.jobs or 1)

    def _open(self, folder: Path, objectives: Sequence[Any]) -> "optuna.Study":
        import optuna

        storage = f"sqlite:///{(folder / STATE).resolve()}"
        directions: Any = ["maximize" if objective.maximize else "minimize" for objective in objectives]
        study = optuna.create_study(study_name="search", storage=storage, directions=directions, load_if_exists=True)
        # A sampler is not part of the state: with the seed alone a continued search would draw as it did before.
        seed = int(self.config.sweep.seed) + len(study.get_trials(deepcopy=False))
        study.sampler = make_sampler(self.sampler, seed, self.population)
        return study

    def _run(
        self,
        trials: Sequence["optuna.Trial"],
        study: "optuna.Study",
        fixed: Sequence[str],
        space: Sequence[Override],
        objectives: Sequence[Any],
    ) -> None:
        import optuna

        jobs = [[*fixed, *(propose(trial, override) for override in space)] for trial in trials]
        self.validate_batch_is_legal(jobs)
        results = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, results, strict=True):
            value = result.return_value
            values = value if isinstance(value, list) else [value]
            if len(values) == len(objectives) and all(isinstance(v, float) for v in values):
                study.tell(trial, values)
            else:  # it failed, was refused, or has no such figure: its record says so
                study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _say_best(self, study: "optuna.Study", objectives: Sequence[Any]) -> None:
        from frugal import console

        complete = [trial for trial in study.get_trials(deepcopy=False) if trial.values]
        if not complete:
            console.say("No trial of the search was completed.")
            return
        front = sorted(study.best_trials, key=lambda trial: trial.values)
        head = (
            f"Best of {len(complete)} trials"
            if len(objectives) == 1
            else f"Front, {len(front)} of {len(complete)} trials"
        )
        console.say(f"{head}: {', '.join(('max ' if o.maximize else 'min ') + o.key for o in objectives)}")
        for trial in front[: 1 if len(objectives) == 1 else 20]:
            reached = ", ".join(f"{value:g}" for value in trial.values)
            console.say(f"  {reached}: {' '.join(f'{key}={value}' for key, value in trial.params.items())}")


def make_sampler(name: str, seed: int, population: int) -> Any:
    import optuna

    from frugal.errors import SettingsError

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=population)
    raise SettingsError(f"hydra.sweeper.sampler={name}: choose random, tpe or nsga2")


def parameters(params: dict[str, Any], arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
    """The command's fixed words, and what is searched: the command's lists and intervals, or the option's."""
    from frugal.errors import SettingsError

    parser = OverridesParser.create()
    parsed = parser.parse_overrides(list(arguments))
    fixed = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    space = [override for override in parsed if override.is_sweep_override()]
    if not space:
        named = {override.get_key_element() for override in parsed}
        given = parser.parse_overrides([f"{key}={value}" for key, value in params.items() if key not in named])
        fixed += [str(override.input_line) for override in given if not override.is_sweep_override()]
        space = [override for override in given if override.is_sweep_override()]
    if not space:
        raise SettingsError("sweep: nothing to search; give a list or an interval, optim.lr=interval(0.01,1)")
    return fixed, space


def propose(trial: "optuna.Trial", override: Override) -> str:
    """A word of the trial's command, as Optuna suggests it."""
    from frugal.errors import SettingsError

    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        log_scale = "log" in value.tags
        assert value.start is not None and value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return f"{key}={trial.suggest_int(key, value.start, value.end, log=log_scale)}"
        # four digits: a run's name holds it
        return (
            f"{key}={float(f'{trial.suggest_float(key, float(value.start), float(value.end), log=log_scale):.4g}')!r}"
        )
    if isinstance(value, RangeSweep) and all(isinstance(v, int) for v in (value.start, value.stop, value.step)):
        assert value.start is not None and value.stop is not None
        last = range(int(value.start), int(value.stop), int(value.step))[-1]  # Hydra's range leaves its end out
        return f"{key}={trial.suggest_int(key, int(value.start), last, step=int(value.step))}"
    choices = [str(choice) for choice in override.sweep_iterator(transformer=Transformer.encode)]
    if not choices:
        raise SettingsError(f"{override.input_line}: nothing to choose from")
    return f"{key}={trial.suggest_categorical(key, choices)}"


def again(study: "optuna.Study") -> None:
    """Trials that a kill cut off stay RUNNING for ever: try what they tried once more. Nobody else runs this study."""
    import optuna

    for trial in study.get_trials(deepcopy=False):
        if trial.state == optuna.trial.TrialState.RUNNING:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.enqueue_trial(trial.params)
            study._storage.set_trial_user_attr(trial._trial_id, "cut_off", True)
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def finished(study: "optuna.Study") -> int:
    """Trials that count: completed or failed, but not those that were cut off."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and not trial.user_attrs.get("cut_off") for trial in trials)


def _acquire(lock: Any, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        log.info("Another process runs the search in %s: waiting for it", folder)
        fcntl.flock(lock, fcntl.LOCK_EX)

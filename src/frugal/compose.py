"""From overrides to a configuration: where options are searched, one-line errors, and which options a command chose.

Hydra composes; this file adds the search path (a `configs/` in the working directory comes before the shipped one),
checks what Hydra itself would build, and turns Hydra's errors into one line with the nearest valid name.
"""

from __future__ import annotations

import contextlib
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from frugal import settings
from frugal.errors import FrugalError, SettingsError

Choices = dict[str, str | None]


class WorkingDirectoryConfigs(SearchPathPlugin):
    """Puts `./configs` before the shipped options, so that a user adds or replaces an option by a file of that name."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        own = Path.cwd() / "configs"
        if own.is_dir() and own.resolve() != settings.config_folder().resolve():
            search_path.prepend(provider="working-directory", path=f"file://{own}")


_prepared = False


def prepare_hydra() -> None:
    """Register the schema, the search path and the check of Hydra's own targets; once a process."""
    global _prepared
    if _prepared:
        return
    _prepared = True
    version.setbase("1.3")
    settings.register_schema()
    Plugins.instance().register(WorkingDirectoryConfigs)
    original = ConfigLoaderImpl.load_configuration
    load_sweep_config = ConfigLoaderImpl.load_sweep_config
    loading = ConfigLoaderImpl._load_configuration_impl

    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = original(self, *args, **kwargs)
        # of a job of a sweep Hydra builds only the log handlers
        of_job = self.__dict__.get("_frugal_of_sweep")
        settings.check_hydra({"job_logging": cfg.hydra.job_logging} if of_job else cfg.hydra)
        return cfg

    def load_of_sweep(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        self.__dict__["_frugal_of_sweep"] = True
        try:
            return load_sweep_config(self, *args, **kwargs)
        finally:
            self.__dict__["_frugal_of_sweep"] = False

    def load(self: ConfigLoaderImpl, config_name: Any, overrides: list[str], *args: Any, **kwargs: Any) -> DictConfig:
        cfg = _load_by_choices(loading, self, config_name, overrides, *args, **kwargs)
        return cfg if cfg is not None else loading(self, config_name, overrides, *args, **kwargs)

    # Hydra instantiates cfg.hydra's callbacks, sweeper and launcher right after this call, with a block-list only.
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
    ConfigLoaderImpl.load_sweep_config = load_of_sweep  # type: ignore[method-assign]
    ConfigLoaderImpl._load_configuration_impl = load  # type: ignore[method-assign]


_MOST_KEPT = 32  # configurations a loader, each some 20 kB


def _load_by_choices(
    loading: Callable[..., DictConfig],
    loader: ConfigLoaderImpl,
    config_name: str | None,
    overrides: list[str],
    run_mode: RunMode,
    from_shell: bool = True,
    validate_sweep_overrides: bool = True,
) -> DictConfig | None:
    """What Hydra would compose, in a twentieth of its time where this loader has composed the same choices before.

    The jobs of a sweep mostly differ in values, and Hydra would read and merge forty files for each, twice. Here the
    choices of options are composed once and kept; the values are then applied by Hydra's own code. None where that
    cannot be done, and Hydra does it all.
    """
    if run_mode != RunMode.RUN:
        return None
    parsed = OverridesParser.create().parse_overrides(overrides=overrides)
    if any(o.is_sweep_override() or o.key_or_group in ("hydra.searchpath", "hydra.job.env_copy") for o in parsed):
        return None
    kept: dict[Any, bytes] = loader.__dict__.setdefault("_frugal_kept", {})
    groups: dict[str, bool] = loader.__dict__.setdefault("_frugal_groups", {})
    for key in {o.key_or_group for o in parsed} - groups.keys():
        groups[key] = loader.repository.group_exists(key)
    # as `hydra._internal.defaults_list.Overrides` tells them apart
    values = [o for o in parsed if not groups[o.key_or_group] or isinstance(o.value(), dict)]
    chosen = [str(o.input_line) for o in parsed if not any(o is value for value in values)]
    which = (config_name, from_shell, validate_sweep_overrides, *chosen)
    if which not in kept:
        whole = loading(loader, config_name, chosen, run_mode, from_shell, validate_sweep_overrides)
        if len(kept) >= _MOST_KEPT:
            kept.pop(next(iter(kept)))
        kept[which] = pickle.dumps(whole, pickle.HIGHEST_PROTOCOL)  # read back in a fifth of a deep copy's time
    cfg: DictConfig = pickle.loads(kept[which])
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    node = cfg.hydra
    node.overrides.hydra = [str(o.input_line) for o in parsed if o.is_hydra_override()]
    tasks = [o for o in parsed if not o.is_hydra_override()]
    node.overrides.task = [str(o.input_line) for o in tasks]
    form = node.job.config.override_dirname
    node.job.override_dirname = get_overrides_dirname(tasks, form.exclude_keys, form.item_sep, form.kv_sep)
    return cfg


def compose(verb: str, overrides: Sequence[str], sources: Sequence[Any] = ()) -> tuple[DictConfig, Choices]:
    """Compose `VERB.yaml` with `overrides`; `sources` are Hydra's config sources where the search path was extended.

    Returns the configuration (without Hydra's own part) and the option that was chosen in each group.
    """
    prepare_hydra()
    if sources:
        search_path: ConfigSearchPath = ConfigSearchPathImpl()
        for source in sources:
            if source["path"]:  # Hydra's own structured source has a scheme but no folder
                search_path.append(source["provider"], f"{source['schema']}://{source['path']}")
            elif source["schema"] == "structured":
                search_path.append(source["provider"], "structured://")
    else:
        search_path = create_config_search_path(str(settings.config_folder()))
    with one_line_errors(verb, overrides):
        cfg = ConfigLoaderImpl(search_path).load_configuration(verb, list(overrides), RunMode.RUN)
        return split(cfg)


def split(cfg: DictConfig) -> tuple[DictConfig, Choices]:
    """Take Hydra's node out of what was composed; and the choices, without Hydra's own."""
    choices = choices_of(cfg.hydra)
    with read_write(cfg), open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def choices_of(node: DictConfig) -> Choices:
    """The options that were chosen, from Hydra's node."""
    raw = OmegaConf.to_container(node.runtime.choices, resolve=False)
    assert isinstance(raw, dict)
    return {
        # `override /data@_global_.data: mnist` and the like name their package after an @
        str(group).split("@")[0]: (None if option in (None, "null") else str(option))
        for group, option in raw.items()
        if not str(group).startswith("hydra/")
    }


# ---------------------------------------------------------------------------------------------- one-line errors
@contextlib.contextmanager
def one_line_errors(verb: str, overrides: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra and OmegaConf raise while composing into a SettingsError of one line."""
    try:
        yield
    except FrugalError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(explain(error, verb, overrides)) from None
    except yaml.MarkedYAMLError as error:  # an option file of the user's
        at = error.problem_mark
        where = f"{at.name}, line {at.line + 1}" if at is not None else "an option file"
        raise SettingsError(f"{where}: not YAML ({error.problem})") from error
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # what Hydra says of `model=null`
            raise
        word = next((o for o in reversed(overrides) if _chooses_nothing(o)), "an option")
        raise SettingsError(
            f"{word}: a group takes the name of one of its options; see frugal {verb} --help"
        ) from error


def _chooses_nothing(override: str) -> bool:
    """Whether a group is given what is no option's name: `model=null`, `model=3`."""
    group, _, value = override.lstrip("+").partition("=")
    is_group = any((folder / group.split("@")[0]).is_dir() for folder in (settings.config_folder(), Path("configs")))
    return is_group and not isinstance(yaml.safe_load(value), str | list)


def explain(error: BaseException, verb: str, overrides: Sequence[str]) -> str:
    """One line that names the key, what was given and the nearest valid name."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        how = "no blanks round the =; what holds special signs in quotes, as 'key=\"a b\"'"
        return f"{error.override}: cannot be read as KEY=VALUE ({how})"
    cause = error.__cause__
    deep = str(cause) if cause is not None else text
    ambiguous = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if ambiguous:
        given = ambiguous.group(1)
        key, _, value = given.partition("=")
        return f"{given}: several values are a sweep: frugal {verb} -m {given}; a list is written {key}=[{value}]"
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing and "Available options" in text:
        group, _, option = missing.group(1).rpartition("/")
        if group == "hydra/launcher" and option.startswith("submitit_"):
            return "launch: SLURM's launcher is not installed; install it with: pip install 'frugal-ml[slurm]'"
        options = re.findall(r"^\t(.+)$", text.partition("\nConfig search path")[0], flags=re.MULTILINE)
        return f"{group}={option}: {settings.did_you_mean(option, options)}"
    primary = re.search(r"Cannot find primary config '([^']+)'", text)
    if primary:
        return f"--config-name {primary.group(1)}: no such configuration"
    no_group = re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text)
    if no_group:
        key = no_group.group(1)
        elsewhere = _keys_named(key, verb)
        if elsewhere:
            return f"{_given(key, overrides)}: unknown; did you mean {' or '.join(elsewhere)}?"
        return f"{_given(key, overrides)}: {settings.did_you_mean(key, _valid_keys(verb, overrides, ''))}"
    below = re.search(r"Could not override 'data\.([^']+)'", text)
    if below and verb == "evaluate" and not any(o.startswith("data=") for o in overrides):
        given = _given(f"data.{below.group(1)}", overrides)
        return f"{given}: name the data's option too, as in data=csv_text {given}; without, the run's own data is taken"
    full = re.search(r"full_key: (\S+)", deep) or re.search(r"full_key: (\S+)", text)
    override = re.search(r"Could not override '([^']+)'", text)
    key = override.group(1) if override else full.group(1) if full else ""
    if full and full.group(1).startswith(f"{key}."):  # `model.network={a: 1}`: the wrong name is inside the value
        key = full.group(1)
    if key and ("is not in struct" in deep + text or "not in '" in deep + text):
        parent, _, leaf = key.rpartition(".")
        # the deepest key that exists tells where the name went wrong
        valid = _valid_keys(verb, overrides, parent)
        while not valid and parent:
            parent, _, leaf = parent.rpartition(".")
            valid = _valid_keys(verb, overrides, parent)
        if not parent and "." not in key:
            elsewhere = _keys_named(leaf, verb)
            if elsewhere:
                return f"{_given(key, overrides)}: unknown; did you mean {' or '.join(elsewhere)}?"
        near = settings.did_you_mean(leaf, valid)
        prefix = f"{parent}." if parent else ""
        return f"{_given(key, overrides)}: {near.replace('did you mean ', f'did you mean {prefix}')}"
    first = deep.strip().splitlines()[0] if deep.strip() else text
    wanted = re.search(r"could not be converted to (Integer|Float)|is not a valid (bool)", first)
    if wanted:
        kinds = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
        first = f"needs {kinds[wanted[1] or wanted[2]]}"
    return f"{_given(key, overrides)}: {first}" if key else first


def _given(key: str, overrides: Sequence[str]) -> str:
    for override in reversed(overrides):  # the last one counts
        if override.lstrip("+~").split("=")[0] == key:
            return override
    return key


def _valid_keys(verb: str, overrides: Sequence[str], parent: str) -> list[str]:
    """Keys below `parent` in what the group choices among `overrides` compose to, or in the plain verb."""
    loader = ConfigLoaderImpl(create_config_search_path(str(settings.config_folder())))
    groups = [
        o for o in overrides if re.fullmatch(r"[\w/]+=\w+", o) and (settings.config_folder() / o.split("=")[0]).is_dir()
    ]
    for attempt in (groups, []):
        try:
            cfg = loader.load_configuration(verb, attempt, RunMode.RUN)
        except (HydraException, OmegaConfBaseException, FrugalError):
            continue
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if OmegaConf.is_dict(node):
            return [str(name) for name in node if not (not parent and name == "hydra") and name not in _NOT_FOR_USERS]
    return []


_NOT_FOR_USERS = {"_target_", "_partial_", "needs", "excludes", "task"}


def _keys_named(leaf: str, verb: str) -> list[str]:
    """Full keys that end in `leaf`, for somebody who gave a setting without its group: lr is optim.lr."""
    loader = ConfigLoaderImpl(create_config_search_path(str(settings.config_folder())))
    job, _ = split(loader.load_configuration(verb, [], RunMode.RUN))
    plain = OmegaConf.to_container(job, resolve=False)

    def walk(node: Any, key: str) -> Iterator[str]:
        if isinstance(node, dict):
            for name, child in node.items():
                dotted = f"{key}.{name}" if key else str(name)
                if name == leaf and key:
                    yield dotted
                yield from walk(child, dotted)

    return sorted(walk(plain, ""))[:3]


# --------------------------------------------------------------------------------------------------------- resume
def expand_resume(overrides: Sequence[str]) -> list[str]:
    """`run.resume=RUN` continues that run as it was configured: its own overrides come before the command's.

    A key that the command gives again is the command's. The folder is made absolute and quoted for Hydra.
    """
    given = list(overrides)
    for index, override in enumerate(given):
        key, _, value = override.partition("=")
        value = value.strip("'\"")
        if key.lstrip("+") != "run.resume" or value.lower() in ("true", "false", ""):
            continue
        folder = Path(value).expanduser()
        file = folder / "overrides.yaml"
        if not file.is_file():
            raise SettingsError(f"run.resume={value}: no run's folder (it has no overrides.yaml)")
        named = {o.lstrip("+~").split("=")[0] for o in given}
        own = []
        for word in yaml.safe_load(file.read_text()):
            known = word.lstrip("+~").split("=")[0]
            # with another option of a group, what was set below the old one goes too
            if known not in named and known.split(".")[0] not in named:
                own.append(word)
        given[index] = f"run.resume={quote(str(folder.resolve()))}"
        return [*own, *given]
    return given


def quote(value: str) -> str:
    """A value in Hydra's quotes, so that its grammar reads nothing into it."""
    # to Hydra a backslash is one, unless a quotation mark follows it
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"

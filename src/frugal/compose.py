"""From overrides to a configuration: where options are searched, one-line errors, and which options a command chose.

Hydra composes; this file adds the search path (a `configs/` in the working directory comes before the shipped one),
checks what Hydra itself would build, and turns Hydra's errors into one line with the nearest valid name.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
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

    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        cfg = original(self, *args, **kwargs)
        settings.check_hydra(cfg.hydra)
        return cfg

    # Hydra instantiates cfg.hydra's callbacks, sweeper and launcher right after this call, with a block-list only.
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]


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
    """Part Hydra's node from the job's; the choices without Hydra's own."""
    raw = OmegaConf.to_container(cfg.hydra.runtime.choices, resolve=False)
    assert isinstance(raw, dict)
    choices: Choices = {
        # `override /data@_global_.data: mnist` and the like name their package after an @
        str(group).split("@")[0]: (None if option in (None, "null") else str(option))
        for group, option in raw.items()
        if not str(group).startswith("hydra/")
    }
    job = copy.deepcopy(cfg)
    with read_write(job), open_dict(job):
        del job["hydra"]
    return job, choices


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
        own = [o for o in yaml.safe_load(file.read_text()) if o.lstrip("+~").split("=")[0] not in named]
        given[index] = f"run.resume={quote(str(folder.resolve()))}"
        return [*own, *given]
    return given


def quote(value: str) -> str:
    """A value in Hydra's quotes, so that its grammar reads nothing into it."""
    # to Hydra a backslash is one, unless a quotation mark follows it
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"

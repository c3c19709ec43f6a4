"""Entry point that all commands share: a user error prints one line, no traceback."""

import functools
import inspect
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from segloss.errors import MissingFileError, SeglossError, explain, printable


def run(
    main: Callable[[list[str]], None],
    *,
    arguments: Sequence[str] = (),
    repeats_last: bool = False,
    hosts_modes: Sequence[str] = (),
) -> None:
    """Parses the flags and runs `main`; an error that the user can fix prints one line.

    These are wrong flags or arguments, and in `main` a `SeglossError` or an `OSError`
    that names a file. The exit code is 1. All other exceptions, which are bugs, keep
    their traceback; `--verbosity=1` shows that of every error.

    Args:
        main: called with a list of the command's name and its positional arguments.
        arguments: names of the positional arguments, all of which are required.
        repeats_last: True allows several values for the last argument, False only one.
        hosts_modes: values of `--mode` for which the command may run in several
            processes; if there are any, the command gets the flags that start them.
    """
    if hosts_modes:
        _define_hosts()

    def guarded(argv: list[str]) -> None:
        _, *given = argv
        if len(given) > len(arguments) and not repeats_last:
            stray = given[len(arguments)]
            sys.exit(f"error: unknown argument {stray!r}; flags start with --.")
        if len(given) < len(arguments):
            sys.exit(
                f"error: {arguments[len(given)]} is missing; --help shows the usage."
            )
        main_of_hosts = _with_hosts(main, hosts_modes) if hosts_modes else main
        if logging.level_debug():
            main_of_hosts(argv)
            return
        logging.set_verbosity(logging.WARNING)
        # Python would also print the line of code that warns.
        warnings.showwarning = _show_warning
        try:
            main_of_hosts(argv)
        except KeyboardInterrupt:
            sys.exit("interrupted")
        except Exception as error:
            if line := explain(error):
                sys.exit(f"error: {line}")
            raise

    app.run(guarded, flags_parser=_parse)


def define_config(help_string: str, *, new_fields: bool = False) -> flags.FlagHolder:
    """Defines `--config=FILE` or `--config=FILE:ARGUMENT`, and `--config.FIELD=VALUE`.

    FILE is a Python file with a function `get_config` that returns a `ConfigDict`; it
    gets ARGUMENT if that is given.

    Args:
        help_string: what `--help` says.
        new_fields: True also accepts fields that the config lacks, in sections that it
            has. The command must then check the names of all fields.

    Returns:
        The flag. Its value is the config with the given fields, or None.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        help_string,
        lock_config=False,
        accept_new_attributes=new_fields,
    )
    flags.FLAGS["config"].parser = _ConfigParser(locked=not new_fields)
    return holder


# Flags of `--mode=train` alone; each is a keyword argument of `segloss.train.train`.
_TRAINING = ("profile_steps", "resume_with_changes")


def define_training_flags(mode: flags.FlagHolder) -> Callable[[], dict[str, Any]]:
    """Defines the flags that only `--mode=train` takes.

    `mode` is the flag `--mode`. The result returns the values of the flags that were
    given, by name; it returns none in another mode, where `check_mode` refuses them.
    """
    flags.DEFINE_string(
        "profile_steps", None, "train: FIRST:LAST, steps to trace for TensorBoard."
    )
    flags.DEFINE_bool(
        "resume_with_changes",
        False,
        "train: resumes a run although its config has changed; its seed, sampler, crop "
        "windows and model cannot change.",
    )

    def given() -> dict[str, Any]:
        if mode.value != "train":
            return {}
        values = {name: flags.FLAGS[name].value for name in _TRAINING}
        return {name: value for name, value in values.items() if value is not None}

    return given


def given_fields() -> list[str]:
    """Returns the dotted paths of the fields that `--config.FIELD=VALUE` set."""
    flag = flags.FLAGS["config"]
    return [] if flag.value is None else list(config_flags.get_override_values(flag))


def check_mode(
    mode: str, owners: Mapping[str, str], *, needs_workdir: bool = False
) -> None:
    """Refuses flags that the user gave, but `mode` does not use.

    Args:
        mode: the value of `--mode`.
        owners: the only mode that uses a flag, by the name of the flag; those of
            `define_training_flags` are known.
        needs_workdir: True also refuses a missing `--workdir`.

    Raises:
        SeglossError: if a flag belongs to another mode, or `--workdir` is missing.
    """
    of_training = dict.fromkeys(filter(flags.FLAGS.__contains__, _TRAINING), "train")
    owners = of_training | dict(owners)
    for name, owner in owners.items():
        if flags.FLAGS[name].present and owner != mode:
            raise SeglossError(
                f"--{name} is a flag of --mode={owner}, got --mode={mode}."
            )
    if needs_workdir and flags.FLAGS["workdir"].value is None:
        raise SeglossError("--workdir is missing; it is the directory of the run.")


def _define_hosts() -> None:
    flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of process 0, for several processes."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes of the run.")
    flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
    flags.DEFINE_enum(
        "distributed",
        "auto",
        ["auto", "off"],
        "auto: several processes where JAX detects a cluster; off: one process.",
    )


def _with_hosts(
    main: Callable[[list[str]], None], modes: Sequence[str]
) -> Callable[[list[str]], None]:
    """Makes `main` join the other processes of its run first, if there are any."""

    def with_hosts(argv: list[str]) -> None:
        given = flags.FLAGS
        address = given.coordinator_address
        detect = given.distributed == "auto"
        numbers = given.num_processes, given.process_id
        if given.mode not in modes:
            if address is not None or numbers != (None, None):
                raise SeglossError(
                    f"--mode={given.mode} runs in one process; leave out "
                    "--coordinator_address, --num_processes and --process_id."
                )
            main(argv)
            return
        # Imported here, so that --help is fast.
        from segloss import hosts

        hosts.start(address, *numbers, detect=detect)
        if hosts.process_count() == 1:
            main(argv)
            return
        if not hosts.is_first():
            warnings.showwarning = functools.partial(
                _show_warning, process=hosts.process_index()
            )
        with hosts.watched(agreed=(SystemExit,)):
            main(argv)

    return with_hosts


def _show_warning(
    message: Warning | str, *_: object, process: int | None = None
) -> None:
    where = "" if process is None else f"process {process}: "
    print(f"{where}warning: {message}", file=sys.stderr)


class _ConfigFileError(Exception):
    """Carries an exception of a config file past absl, which would hide its kind."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


class _ConfigParser(flags.ArgumentParser):
    """Parses the value of `--config`; `locked` configs take no further fields."""

    def __init__(self, *, locked: bool):
        self._locked = locked
        self.config = ConfigDict()

    def parse(self, path: str) -> ConfigDict:
        try:
            config = _execute(path)
        except Exception as error:
            raise _ConfigFileError(error) from None
        self.config = config.lock() if self._locked else config.unlock()
        return self.config


def _execute(path: str) -> ConfigDict:
    file, colon, argument = path.partition(":")
    if Path(file).suffix != ".py":
        raise SeglossError(f"--config={path}: the file must be a Python file, *.py.")
    if not Path(file).is_file():
        raise MissingFileError(
            f"--config={path}: there is no file {file} in {Path.cwd()}; the configs of "
            "segloss are in its folder configs."
        )
    get_config = runpy.run_path(file).get("get_config")
    if not callable(get_config):
        raise SeglossError(f"--config={path}: {file} has no function get_config.")
    given = [argument] if colon else []
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError as error:
        takes = "takes no argument after the colon" if colon else "needs an argument"
        raise SeglossError(f"--config={path}: get_config {takes}: {error}.") from error
    config = get_config(*given)
    if not isinstance(config, ConfigDict):
        raise SeglossError(
            f"--config={path}: get_config must return a ConfigDict, got "
            f"{type(config).__name__}."
        )
    return config


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except _ConfigFileError as carrier:
        error = carrier.error
        if line := explain(error):
            sys.exit(f"error: {line}")
        raise error from None
    except flags.UnrecognizedFlagError as error:
        _refuse(_explain_unknown(error))
    except flags.IllegalFlagValueError as error:
        _refuse(_explain_value(error))
    except flags.Error as error:
        if "not supported for overriding" in str(error):  # the field is a list
            _refuse(_explain_field(argv, error))
        _refuse(_with_help(error))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # The config file was executed above, so this is about a --config.FIELD=VALUE.
        _refuse(_explain_field(argv, error))


def _refuse(line: str) -> NoReturn:
    sys.exit(f"error: {printable(line)}")


def _explain_unknown(error: flags.UnrecognizedFlagError) -> str:
    name = error.flagname
    if name.startswith("config."):
        field = name.removeprefix("config.")
        return (
            f"--{name} needs --config=FILE before it; without a file, "
            f"--set={field}=VALUE changes the config that is stored in --workdir."
        )
    return _with_help(error)


_TYPES = {
    "bool": "True or False",
    "float": "a number",
    "int": "an integer",
    "string": "a section such as {'name': ...}",
}


def _explain_value(error: flags.IllegalFlagValueError) -> str:
    line = _in_one_line(error)
    given = re.match(r"flag (--(config\.[^=]*)=.*?): ", line)
    if given is None:
        return _with_help(error)
    kind = flags.FLAGS[given[2]].parser.flag_type()
    return f"{given[1]}: the value must be {_TYPES.get(kind, kind)}."


def _explain_field(argv: Sequence[str], error: Exception) -> str:
    """Says which `--config.FIELD` does not exist; otherwise what `error` says."""
    config = flags.FLAGS["config"].parser.config
    given = [x for x in argv if re.match(r"--?(no)?config\.[^=]", x)]
    # Entries of a list are looked at last, since most of them exist.
    for argument in sorted(given, key=lambda x: "[" in x.split("=")[0]):
        section, where = config, "config"
        path = argument.split("=")[0].split("config.", 1)[1]
        for name in re.split(r"\.|(?=\[)", path):
            if isinstance(section, list | tuple):
                break
            if not isinstance(section, ConfigDict) or name not in section:
                known = (
                    ", ".join(section) if isinstance(section, ConfigDict) else "none"
                )
                return f"{argument}: {where} has no field {name!r}; known are {known}."
            section, where = section[name], f"{where}.{name}"
        if isinstance(section, list):
            field = where.removeprefix("config.")
            return (
                f"{argument}: {where} is a list; "
                f"--set=\"{field}={{'name': ...}}\" replaces the whole."
            )
    return _in_one_line(error)


def _with_help(error: Exception) -> str:
    line = _in_one_line(error)
    end = "" if line.endswith((".", "?")) else "."
    return f"{line}{end} --help lists the flags."


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

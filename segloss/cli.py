"""What the commands share: one clear line where a traceback would not help."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging


def run(
    main: Callable[[list[str]], None],
    *,
    arguments: Sequence[str] = (),
    repeats_last: bool = False,
) -> None:
    """Runs a command; what its user can mend ends it with one line, and exit code 1.

    `--verbosity=1` shows where an error came from.

    Args:
        main: takes the command's name, and after it what is no flag.
        arguments: names of those that must be given.
        repeats_last: whether the last of them may be given several times.
    """

    def guarded(argv: list[str]) -> None:
        _, *given = argv
        if len(given) > len(arguments) and not repeats_last:
            stray = given[len(arguments)]
            sys.exit(f"error: unknown argument {stray!r}; flags start with --.")
        if len(given) < len(arguments):
            sys.exit(f"error: {arguments[len(given)]} is missing; --help says more.")
        if logging.level_debug():
            main(argv)
            return
        logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except KeyboardInterrupt:
            sys.exit(
                "interrupted; the same command goes on from the newest checkpoint."
            )
        except (ValueError, OSError, FloatingPointError) as error:
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    # Config files are read while flags are parsed, and may raise anything.
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no field {error}.")
    except Exception as error:
        # Of a traceback, the last line says what is wrong.
        sys.exit(
            f"error: {str(error).strip().splitlines()[-1]} --help lists the flags."
        )

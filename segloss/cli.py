"""Entry point that all commands share: a user error prints one line, no traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging


def run(
    main: Callable[[list[str]], None],
    *,
    arguments: Sequence[str] = (),
    repeats_last: bool = False,
) -> None:
    """Parses the flags and runs `main`; an error that the user can fix prints one line.

    These are wrong flags or arguments, and ValueError, OSError and FloatingPointError
    in `main`. The exit code is 1. `--verbosity=1` shows the traceback.

    Args:
        main: called with a list of the command's name and its positional arguments.
        arguments: names of the positional arguments, all of which are required.
        repeats_last: True allows several values for the last argument, False only one.
    """

    def guarded(argv: list[str]) -> None:
        _, *given = argv
        if len(given) > len(arguments) and not repeats_last:
            stray = given[len(arguments)]
            sys.exit(f"error: unknown argument {stray!r}; flags start with --.")
        if len(given) < len(arguments):
            sys.exit(
                f"error: {arguments[len(given)]} is missing; --help shows the usage."
            )
        if logging.level_debug():
            main(argv)
            return
        logging.set_verbosity(logging.WARNING)
        try:
            main(argv)
        except KeyboardInterrupt:
            sys.exit(
                "interrupted; run the same command again to resume from the newest "
                "checkpoint."
            )
        except (ValueError, OSError, FloatingPointError) as error:
            sys.exit(f"error: {error}")

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    # Parsing the flags executes config files, which may raise any exception.
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no field {error}.")
    except Exception as error:
        # The last line of a traceback states the error.
        sys.exit(
            f"error: {str(error).strip().splitlines()[-1]} --help lists the flags."
        )

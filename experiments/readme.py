"""The part of a README that is written by a command, between two markers."""

import pathlib

_BEGIN, _END = "<!-- results -->\n", "<!-- end of results -->\n"
EMPTY = _BEGIN + _END


def replace_results(readme: pathlib.Path, results: str) -> None:
    """Replaces what stands between the markers.

    Raises:
        ValueError: if the README does not hold each of them once, in order.
    """
    text = readme.read_text() if readme.exists() else ""
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end) or text.count(_BEGIN) != 1 or text.count(_END) != 1:
        raise ValueError(
            f"{readme} must hold the lines {_BEGIN.strip()} and {_END.strip()} once."
        )
    readme.write_text(f"{before}{_BEGIN}\n{results}\n{_END}{after}")

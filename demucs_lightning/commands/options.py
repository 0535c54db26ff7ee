"""Options of a command line, each mistake in which is one sentence, without a page of usage."""

import argparse
import difflib
import math
import re
import sys
from typing import NoReturn

REFUSED = 2  # the status, as of other programs that are started wrongly
KINDS = {  # of values, by the names of their types
    "int": "a whole number",
    "float": "a number",
    "positive": "a number above 0",
    "count": "a whole number above 0",
    "natural": "a whole number, 0 or more",
}
NAME = r"argument (?P<name>\S+): "
# What argparse says, and what is said instead.
SENTENCES = {
    NAME + r"invalid (?P<kind>\w+) value: (?P<value>.+)": "{name} is {value}: it must be {kind}.",
    NAME + r"invalid choice: (?P<value>.+) \(choose from (?P<known>.+)\)": (
        "{name} is {value}: it must be one of {known}."
    ),
    NAME + r"expected .*argument.*": "{name} needs a value behind it.",
    NAME + r"not allowed with argument (?P<other>\S+)": (
        "{name} and {other} exclude one another: leave one of them out."
    ),
    NAME + r"ignored explicit argument (?P<value>.+)": (
        "{name} takes no value: leave {value} out."
    ),
    r"ambiguous option: (?P<value>.+) could match (?P<known>.+)": (
        "{value} is the beginning of {known}: write the one that is meant in full."
    ),
    r"the following arguments are required: (?P<known>.+)": (
        "The command line lacks {known}: --help says what each is."
    ),
}


class Parser(argparse.ArgumentParser):
    """Ends the program with one sentence and status 2 for options that can't be."""

    def error(self, message: str) -> NoReturn:
        refuse(self, message)


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def count(text: str) -> int:
    value = natural(text)
    if not value:
        raise ValueError
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """The end of the program, where argparse has this ``message``."""
    print(f"error: {_sentence(parser, message)}", file=sys.stderr)
    sys.exit(REFUSED)


def _sentence(parser: argparse.ArgumentParser, message: str) -> str:
    for pattern, sentence in SENTENCES.items():
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return sentence.format(**{k: _worded(k, v) for k, v in found.groupdict().items()})
    if message.startswith(before := "unrecognized arguments: "):
        return _unknown(parser, message.removeprefix(before))
    return f"{message}: --help lists the options."


def _unknown(parser: argparse.ArgumentParser, text: str) -> str:
    option = text.split()[0].partition("=")[0]
    if not option.startswith("-"):
        return f"{text} is too much: --help says what may stand here."
    close = difflib.get_close_matches(option, parser._option_string_actions, n=1, cutoff=0.7)
    meant = f"did you mean {close[0]}?" if close else "--help lists those that there are."
    return f"There is no option {option}: {meant}"


def _worded(key: str, text: str) -> str:
    """A part of a message as people say it."""
    if key == "kind":
        return KINDS.get(text, text)
    if key == "known":
        return text.replace("'", "")
    if key in ("name", "other") and text.startswith("-"):  # of -n/--name the long one
        return next((name for name in text.split("/") if name.startswith("--")), text)
    return text

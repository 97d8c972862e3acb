"""A flag is declared once, as a field of a frozen dataclass; command line, checks and documentation follow from it.

>>> @documented
... @dataclass(frozen=True)
... class Baking:
...     '''How to bake.'''
...
...     minutes: int = flag(30, "baking", "time in the oven", metavar="N", valid=whole(1, 90))
>>> parser = argparse.ArgumentParser()
>>> _ = add_flags(parser, "baking", Baking)
>>> Baking(**given(parser.parse_args(["--minutes", "20"]), Baking))
Baking(minutes=20)
>>> check_values(Baking(minutes=0))
Traceback (most recent call last):
    ...
ucpe_onnx.errors.UsageError: --minutes: 0 is not a whole number from 1 to 90
"""

from __future__ import annotations

import argparse
import inspect
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ucpe_onnx.errors import UsageError

T = TypeVar("T")
C = TypeVar("C", bound=type)

_FLAG, _PYTHON = "flag", "python"
"""What a field's metadata holds: its flag, or what it is for if it has none."""


class TakesFlags(Protocol):
    """A parser, or a group of one."""

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """See :meth:`argparse.ArgumentParser.add_argument`."""


@dataclass(frozen=True)
class Range:
    """The numbers that a flag takes, and what to say of others.

    Attributes:
        complaint: what follows on the flag and the value in the error.
        least: the smallest number, or
        above: what it has to exceed.
        most: the largest number, or
        below: what it has to stay under.
        whole: whether it has to be a whole number.
    """

    complaint: str
    least: float = -math.inf
    above: float | None = None
    most: float = math.inf
    below: float | None = None
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Integral if self.whole else Real):
            return False
        number: Any = value
        exceeds = self.above is None or number > self.above
        stays_under = self.below is None or number < self.below
        return bool(self.least <= number <= self.most and exceeds and stays_under)

    def check(self, flag: str, value: object) -> None:
        """Raise UsageError for a value outside."""
        if value not in self:
            raise UsageError(f"{flag}: {value} {self.complaint}")


def whole(first: int, last: int) -> Range:
    """The whole numbers from one to another, both included."""
    return Range(f"is not a whole number from {first} to {last}", least=first, most=last, whole=True)


@dataclass(frozen=True)
class Flag:
    """What is declared of a flag; see :func:`flag`."""

    name: str | None
    group: str
    help: str
    more: str
    place: int
    choices: tuple[str, ...] | None
    checked: bool
    valid: Range | None
    convert: Callable[[Any], Any] | None
    argument: dict[str, Any]

    @property
    def many(self) -> bool:
        """Whether its value is a sequence."""
        return "nargs" in self.argument or self.argument.get("action") == "append"


def flag(
    default: T,
    group: str,
    help: str,
    *,
    more: str = "",
    name: str | None = None,
    place: int = 0,
    choices: Iterable[str] | None = None,
    checked: bool = True,
    valid: Range | None = None,
    convert: Callable[[Any], Any] | None = None,
    **argument: Any,
) -> T:
    """Declare a field of a dataclass, and the flag of its name.

    What argparse is told follows from the default where it can: a bool is a switch that turns it over, and a number is
    read as one of its kind.

    Args:
        default: the field's default value.
        group: title of the group that the flag stands in.
        help: what the flag is for, as argparse prints it.
        more: what the documentation of the field says besides.
        name: the flag with its dashes, if it isn't called like the field.
        place: flags of a group are listed by their places, those of one place in the order of their fields.
        choices: the values that it may take, or each of its values if it takes several.
        checked: whether :func:`check_values` holds the field to the choices too; the command line always does.
        valid: the numbers that it may be.
        convert: makes the field's value of what argparse has read.
        **argument: what else argparse is told: type, metavar, nargs, action.
    """
    known = None if choices is None else tuple(choices)
    declared = Flag(name, group, help, more, place, known, checked, valid, convert, argument)
    return field(default=default, metadata={_FLAG: declared})


def python_only(default: T, text: str) -> T:
    """Declare a field that has no flag, with its documentation, which says why."""
    return field(default=default, metadata={_PYTHON: text})


def flag_name(options: Any, name: str) -> str:
    """The flag of a field, with its dashes."""
    return _flagged(options)[name].name or _dashed(name)


def flagged(options: Any) -> tuple[str, ...]:
    """The names of the fields that have a flag."""
    return tuple(_flagged(options))


def add_flags(parser: argparse.ArgumentParser, group: str, options: Any) -> TakesFlags:
    """Add the group of that title, with its flags.

    Args:
        parser: gets the group.
        group: what the flags were declared with.
        options: the dataclass, or one of its values.

    Returns:
        The group, for flags that are no option.
    """
    added = parser.add_argument_group(group)
    chosen = [(name, one) for name, one in _flagged(options).items() if one.group == group]
    for name, _ in sorted(chosen, key=lambda pair: pair[1].place):
        add_flag(added, options, name)
    return added


def add_flag(to: TakesFlags, options: Any, name: str, *, help: str | None = None) -> None:
    """Add the flag of one field.

    Args:
        to: a parser, or a group.
        options: the dataclass.
        name: of the field.
        help: what it is for in this command, if it was declared for another.
    """
    declared = _flagged(options)[name]
    told: dict[str, Any] = {"dest": name, "help": help or declared.help, **declared.argument}
    default: Any = next(one.default for one in fields(options) if one.name == name)
    if declared.choices is not None:
        told["choices"] = declared.choices
    if isinstance(default, bool):
        told.setdefault("action", "store_false" if default else "store_true")
    else:
        told["default"] = list(default or ()) if declared.many else default
        if isinstance(default, (int, float)):
            told.setdefault("type", type(default))
    to.add_argument(flag_name(options, name), **told)


def given(args: argparse.Namespace, options: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The values of fields that a command line gives.

    Args:
        args: what argparse has read.
        options: the dataclass.
        names: the fields that the command has flags for; None: all that have one.
    """
    declared = _flagged(options)
    values = {}
    for name in declared if names is None else names:
        convert, value = declared[name].convert, getattr(args, name)
        values[name] = value if convert is None else convert(value)
    return values


def check_values(options: Any) -> None:
    """Check every field by its declaration; None is fine where it is the default.

    Raises:
        UsageError: the first value that isn't; the message names the flag.
    """
    defaults = {one.name: one.default for one in fields(options)}
    for name, declared in _flagged(options).items():
        value, spelled = getattr(options, name), flag_name(options, name)
        if value is None and defaults[name] is None:
            continue
        for single in value if declared.many else (value,):
            if declared.choices is not None and declared.checked and single not in declared.choices:
                raise UsageError(f"{spelled}: unknown {single!r}; choose from {', '.join(declared.choices)}")
            if declared.valid is not None:
                declared.valid.check(spelled, single)


def plain(value: Any) -> Any:
    """A field's value as JSON knows it; an object is named by its type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(v, (tuple, list)) for v in value.values()):
        return {str(k): plain(v) for k, v in value.items()}
    return f"<{type(value).__name__}>"


def documented(options: C) -> C:
    """Append what is declared of a dataclass's fields to its docstring, so that ``help`` shows it."""
    lines = []
    for one in fields(options):
        text = textwrap.fill(
            f"{one.name}: {_described(one)}",
            width=112,
            initial_indent="    ",
            subsequent_indent="        ",
            break_on_hyphens=False,
        )
        lines.append(text)
    options.__doc__ = "\n".join([f"{inspect.cleandoc(options.__doc__ or '')}\n", "Attributes:", *lines])
    return options


def _described(one: Field[Any]) -> str:
    declared: Flag | None = one.metadata.get(_FLAG)
    if declared is None:
        return f"{one.metadata[_PYTHON]}."
    text = declared.help % {"default": one.default}
    if declared.choices is not None and declared.checked:
        text += f"; one of {', '.join(declared.choices)}"
    return f"{text}; {declared.more}." if declared.more else f"{text}."


def _flagged(options: Any) -> dict[str, Flag]:
    return {one.name: one.metadata[_FLAG] for one in fields(options) if _FLAG in one.metadata}


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")

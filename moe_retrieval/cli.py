"""The command line: a dataclass of flags is what a command takes, and bad input is one line.

The order in which values win: the command line, `--config FILE`, `--preset NAME`, the defaults of the dataclass.
"""

import inspect
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import partial
from itertools import chain
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import tyro

from moe_retrieval import bounds, config
from moe_retrieval.errors import InputError
from moe_retrieval.pipes import discard, open_closed

try:
    from tyro._errors import on_parse_error
except ImportError:  # a tyro without this hook prints a complaint of its own, of several lines, with the same status
    on_parse_error = nullcontext  # type: ignore[assignment]

Config = TypeVar("Config")

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
"""What allocators say that raise a plain RuntimeError."""


Presets = Mapping[str, Callable[[Mapping[str, str]], dict[str, Any]]]
"""Name -> what it makes of the flags that are given beside it, by field: its own."""


def fixed(named: Mapping[str, dict[str, Any]]) -> Presets:
    """Of flags that are the same whatever is given beside them."""
    return {name: partial(_same, flags) for name, flags in named.items()}


def _same(flags: dict[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    return flags


def parse(kind: type[Config], arguments: Sequence[str], prog: str, presets: Presets | None = None) -> Config:
    """The command line -> a config, a dataclass of flags. `--help` ends the program.

    A preset and a file become arguments in front of the others, so that one parser checks them all.
    """
    given: dict[str, list[str]] = {flag: [] for flag in (("--preset", "--config") if presets else ("--config",))}
    rest: list[str] = []
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    waiting, verbatim = list(arguments[:end]), list(arguments[end:])
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        if flag in given:
            if not equals and not waiting:
                raise InputError(f"{flag} needs a value")
            given[flag].append(value if equals else waiting.pop(0))
        else:
            rest.append(argument)
    of_files = [to_arguments(kind, config.read(path), f"--config {path}") for path in given["--config"]]
    rest = [*chain(*of_files), *rest]
    earlier: list[str] = []
    for name in given.get("--preset", ()):
        earlier += to_arguments(kind, _preset(name, presets or {}, _by_field(rest)), f"--preset {name}")

    def refuse(event: Any) -> None:
        raise InputError(f"{' '.join(_complaint(event, kind).split())} (see {prog} --help)")

    flags = _bind_dashes(kind, earlier + rest)
    if {"-h", "--help"} & set(flags):
        from moe_retrieval.cli_help import with_plain_defaults

        kind = with_plain_defaults(kind)
    with on_parse_error(refuse):
        return tyro.cli(
            kind,
            prog=prog,
            args=flags + verbatim,
            description=f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{_usage(presets)}",
            config=(tyro.conf.FlagCreatePairsOff,),
        )


def _bind_dashes(kind: type, arguments: list[str]) -> list[str]:
    """`--flag -text` as `--flag=-text`, where the flag takes text: a prompt may begin with a dash."""
    hints = get_type_hints(kind)
    takes_text = {bounds.flag(name) for name, hint in hints.items() if hint is str or str in get_args(hint)}
    bound: list[str] = []
    for argument in arguments:
        is_text = argument.startswith("-") and not re.fullmatch(r"-h|--|--[a-z][a-z_-]*(=.*)?", argument, re.DOTALL)
        if is_text and bound and bound[-1].replace("_", "-") in takes_text:
            bound[-1] += f"={argument}"
        else:
            bound.append(argument)
    return bound


def _complaint(event: Any, kind: type) -> str:
    """What tyro found wrong with the arguments."""
    match type(event).__name__:
        case "InvalidChoice":
            name = event.argument.display_name()
            return f"invalid choice {event.value!r} for argument {name!r}. Expected one of {event.choices}."
        case "UnrecognizedArgs":
            dashed = any(re.match(r"-[^-]", token) for token in event.tokens)
            advice = "; -- goes before text that begins with a dash" if dashed else ""
            return f"Unrecognized options: {', '.join(event.tokens)}{advice}"
        case "MissingArgs":
            return f"Missing options: {', '.join(missing.arg.display_name() for missing in event.missing_arguments)}"
        case "BadValue":
            return f"Missing value for argument {event.argument.display_name()!r}."
        case "InstantiationFailure":
            return (
                f"Error parsing {event.argument.display_name()}: {event.message}" if event.argument else event.message
            )
    return f"the arguments are not understood ({type(event).__name__})"


def _usage(presets: Presets | None) -> str:
    lines = ["--config FILE.yaml: values for any of these flags; the command line wins."]
    if presets:
        lines.append(f"--preset {{{','.join(presets)}}}: named settings, such as a paper's; other flags win.")
    return "\n".join(lines)


def _preset(name: str, presets: Presets, given: Mapping[str, str]) -> dict[str, Any]:
    if name not in presets:
        raise InputError(f"--preset must be one of {', '.join(presets)}; got {name!r}")
    return presets[name](given)


def _by_field(arguments: Sequence[str]) -> dict[str, str]:
    """Field -> its value as text, the last where there are several; of a flag without one, whatever follows it.

    >>> _by_field(["--top-k", "2", "--variant=moe"])
    {'top_k': '2', 'variant': 'moe'}
    """
    found = {}
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            found[name.removeprefix("--").replace("-", "_")] = value if equals else following
    return found


def to_arguments(kind: type, values: dict[str, Any], origin: str) -> list[str]:
    """Values by field -> the command line that says the same."""
    known = {field.name for field in fields(kind)}
    hints = get_type_hints(kind)
    arguments = []
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{origin}: no flag is called {name}; expected some of {', '.join(sorted(known))}")
        if value is None and NoneType not in get_args(hints[name]):
            raise InputError(f"{origin}: {name} must have a value, got none")
        if isinstance(value, dict | list):
            raise InputError(f"{origin}: {name} must be one value, got a {type(value).__name__}")
        if hints[name] is bool:
            if not isinstance(value, bool):
                raise InputError(f"{origin}: {name} must be true or false, got {value!r}")
            arguments += [bounds.flag(name)] if value else []
        else:
            arguments.append(f"{bounds.flag(name)}={value}")
    return arguments


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command: bad input is one line and exit status 2, what the machine refuses one line and status 1.

    Each line is out at once, also in a file or a pipe.
    """
    open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        _end(error, 2)
    except BrokenPipeError:
        discard(sys.stdout)
        raise SystemExit(128 + signal.SIGPIPE) from None
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error, 1)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        _end(f"not enough memory{': ' if str(error) else ''}{' '.join(str(error).split()):.200}", 1)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _lacks_memory(error: Exception) -> bool:
    """Not of an error that only speaks of memory, like an illegal access: that is a bug, with a traceback."""
    by_type: tuple[type, ...] = (MemoryError,)
    if torch := sys.modules.get("torch"):  # what is not imported cannot have raised
        by_type += (getattr(torch, "OutOfMemoryError", MemoryError),)  # which an import that failed has not
    return isinstance(error, by_type) or any(phrase in str(error) for phrase in NO_MEMORY)


def _end(reason: object, status: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    print("error:" if rank == "0" else f"rank {rank}: error:", reason, file=sys.stderr)
    raise SystemExit(status) from None

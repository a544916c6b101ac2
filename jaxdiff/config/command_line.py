"""The command line: configuration files, overrides, and errors of one line.

`tyro` does the parsing. What it prints about an error is a box of several lines; here a person's mistake becomes one
line on stderr and exit status 2 (`one_line_errors`), with a suggestion where a name is nearly right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import io
import os
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import tyro

from jaxdiff.config.hints import described, is_numbers_by_name
from jaxdiff.config.schema import RunConfig
from jaxdiff.config.trust import load_file
from jaxdiff.launch.distributed import ProcessOptions, leave_alone
from jaxdiff.launch.errors import ConfigError, as_config_error, silent_at_a_broken_pipe, suggestion
from jaxdiff.pretrained.origin import found, is_published

Options = TypeVar("Options")
Trained = TypeVar("Trained")


@contextlib.contextmanager
def one_line_errors(program: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns a `ConfigError`, one of ``errors``, a name too long for a file, or a full disk into one line on stderr and
    exit status 2; Ctrl-C into one and 130. Others pass. Output that nobody reads any more (``--help | head``) ends the
    program in silence.

    One of several processes ends by whatever error without waiting for the others (`jaxdiff.launch.distributed`).

    >>> with one_line_errors("train.py"):
    ...     raise ConfigError("train.steps: 0 is out of range")
    Traceback (most recent call last):
    ...
    SystemExit: 2
    """
    try:
        with silent_at_a_broken_pipe():
            yield
    except (Exception, KeyboardInterrupt) as error:
        plain = getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.ENOSPC)  # of a path, of what is printed
        expected = plain or isinstance(error, (ConfigError, *errors))
        if jax.distributed.is_initialized():
            leave_alone(program, error, expected)
        if isinstance(error, KeyboardInterrupt):  # outside of the training loop, which has an answer of its own
            print(f"{program}: interrupted", file=sys.stderr, flush=True)
            raise SystemExit(130) from None
        if not expected:
            raise
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with jaxdiff, by name: of the installed package, or of the repository.

    >>> shipped_configs()["digits_unet"].name
    'digits_unet.py'
    """
    package = Path(__file__).parents[1]
    folder = next(each for each in (package / "configs", package.parent / "configs") if each.is_dir())
    return {file.stem: file for file in sorted(folder.glob("[a-z]*.py"))}


def find_config(path: str | Path) -> Path:
    """A configuration's file: itself, or that of one that comes with jaxdiff by its name.

    Raises:
      ConfigError: there is none; with what there is.
    """
    path = Path(path).expanduser()
    if os.path.isfile(path) and path.suffix:
        return path
    shipped = shipped_configs()
    if path.name in shipped and str(path) == path.name:
        return shipped[path.name]
    name = path.stem if path.suffix == ".py" else path.name
    near = [str(p) for p in sorted(path.parent.glob("*.py"))] if path.suffix and path.parent.is_dir() else []
    hint = suggestion(str(path), near) or suggestion(name, shipped)
    hint = hint or f"; there are {', '.join(near or shipped)}" + ("" if path.suffix else ", or the path of a file")
    what = "configuration file" if path.suffix else "configuration"
    raise ConfigError(f"there is no {what} {str(path)!r}{hint}")


def load_config_file(path: str | Path) -> Any:
    """Runs a configuration file and returns its ``config``, a `Config`, `AutoencoderConfig` or `ClassifierConfig`.

    Args:
      path: of the file; or the name of a configuration that comes with jaxdiff, such as ``"digits_unet"``.

    Raises:
      ConfigError: there is no such file, it fails, or it has no ``config``.
    """
    path = find_config(path)
    module = load_file(path)
    config = getattr(module, "config", None)
    if not isinstance(config, RunConfig):
        raise ConfigError(
            f"{path} defines no `config` of type jaxdiff.config.Config, AutoencoderConfig or ClassifierConfig"
        )
    return config


def parse(
    kind: type[Options],
    arguments: Sequence[str],
    *,
    program: str,
    default: Options | None = None,
    positional: int = 0,
    about: str | None = None,
) -> Options:
    """Parses a command line into a dataclass, by tyro.

    Args:
      kind: a dataclass.
      arguments: without the program's name.
      program: the program's name, for ``--help``.
      default: values to start from.
      positional: how many arguments without a name come before the options.
      about: what ``--help`` says first; None: the dataclass' text.

    Raises:
      ConfigError: an unknown option (with a suggestion), a value of the wrong type, or one that its dataclass refuses.
      SystemExit: 0, after ``--help``.
    """
    known = dict(_options(kind, default))
    _refuse_unknown(arguments, known)
    _refuse_again(arguments, known)
    _refuse_nothing(arguments, kind, known)
    starts = [n for n, argument in enumerate(arguments) if _option_name(argument) is not None]
    leading = arguments[: starts[0]] if starts else arguments
    if len(leading) > positional:
        raise ConfigError(f"{leading[positional]!r} is unexpected: options have names, see --help")
    try:
        return _home_expanded(_parse(kind, arguments, program, default, about))
    except _Refused as refused:
        ends = [*starts[1:], len(arguments)]
        _explain([arguments[start:end] for start, end in zip(starts, ends, strict=True)], known, default)
        raise ConfigError(str(refused)) from None


def _home_expanded(options: Options) -> Options:
    """With ~ as the shell has it in every path; it leaves that in ``--out=~/x``, and in what was quoted."""
    fields: dict[str, Any] = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    paths = {name: value.expanduser() for name, value in fields.items() if isinstance(value, Path)}
    return dataclasses.replace(options, **paths)  # type: ignore[type-var]


def parse_config(
    arguments: Sequence[str],
    *,
    program: str,
    default_file: str | Path = "digits_unet",
    about: str | None = None,
    load: Callable[[str | Path], Any] = load_config_file,
) -> TrainOptions[Any]:
    """The command line of training: a configuration's name or file, or none for the default, then options.

    Args:
      arguments: without the program's name.
      program: the program's name, for ``--help``.
      default_file: what stands for no configuration.
      about: what ``--help`` says first.
      load: reads the configuration.

    Raises:
      ConfigError: as ``load`` and `parse`.
      SystemExit: 0, after ``--help``.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    config = load(arguments[0] if named else default_file)
    rest = arguments[1:] if named else arguments
    stray = next((text for text in rest if text.endswith(".py") and "/" in text), None)
    if stray is not None and not named:
        raise ConfigError(f"{stray}: the configuration file comes first, before all options")
    kind: Any = TrainOptions[type(config)]  # type: ignore[misc]  # its options have the help of the class
    begin = found(arguments[0]) if named and is_published(arguments[0]) else None
    default = TrainOptions(config=config, init_from=begin)
    return parse(kind, rest, program=f"{program} [CONFIG]", default=default, about=about)


@dataclasses.dataclass(frozen=True)
class TrainOptions(ProcessOptions, Generic[Trained]):
    """Train a diffusion model or an autoencoder. Values shown are those of the configuration file, by default
    configs/digits_unet.py."""

    config: Annotated[Trained, tyro.conf.arg(name="")]
    dry_run: bool = False
    """Check configuration, data and shapes, and stop."""
    profile: str | None = None
    """Steps to trace with jax.profiler, for instance 100:110, into the run's folder profile."""
    init_from: Path | None = None
    """Start with the averaged weights of another run: its folder, or that of one of its checkpoints; or with those of a
    published model. A run that has checkpoints of its own goes on from those."""
    init_partial: bool = False
    """Of those weights, take what fits (for other classes, say) and leave the rest new."""


REGISTRY = tyro.constructors.ConstructorRegistry()
"""Of the rules by which tyro reads our types."""


@REGISTRY.struct_rule
def _by_value(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    # A field annotated by a protocol has the options of the dataclass that stands there.
    if dataclasses.is_dataclass(info.type) or not dataclasses.is_dataclass(info.default):
        return None
    kind = type(info.default)
    hints = typing.get_type_hints(kind)
    fields = tuple(
        tyro.constructors.StructFieldSpec(field.name, hints[field.name], getattr(info.default, field.name))
        for field in dataclasses.fields(info.default)
        if field.init
    )
    return tyro.constructors.StructConstructorSpec(kind, fields)


@REGISTRY.primitive_rule
def _numbers_by_name(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
    # Written label=0.1 style=0.2; nothing at all is the empty mapping.
    if not is_numbers_by_name(info.type):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME=NUMBER ...]",
        instance_from_str=_read_numbers,
        is_instance=lambda value: isinstance(value, Mapping),
        str_from_instance=lambda value: [f"{name}={number:g}" for name, number in value.items()],
    )


def _read_numbers(texts: list[str]) -> dict[str, float]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, equals, _) in zip(texts, pairs, strict=True) if not (name and equals)]:
        raise ValueError(f"{wrong[0]!r} is no NAME=NUMBER")
    return {name: float(number) for name, _, number in pairs}


class _Refused(Exception):
    """What tyro said when it refused, as one line of text."""


def _parse(
    kind: type[Options], arguments: Sequence[str], program: str, default: Options | None, about: str | None = None
) -> Options:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a numpy default of a field annotated as a jax array
            return tyro.cli(
                kind,
                args=arguments,
                prog=program,
                description=about,
                default=tyro.MISSING_NONPROP if default is None else default,
                registry=REGISTRY,
                config=(tyro.conf.SuppressFixed, tyro.conf.AvoidSubcommands),
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
    raise _Refused(" ".join(re.sub("[╭╮╰╯─│]", " ", said.getvalue()).split()))  # without the frame tyro draws


def _options(kind: Any, default: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name with underscores, type) of every option."""
    kind = type(default) if dataclasses.is_dataclass(default) else kind
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        value = getattr(default, field.name, None)
        name = field.name if not prefix else f"{prefix}.{field.name}"
        if field.name == "config" and isinstance(value, RunConfig):
            yield from _options(type(value), value)  # its options have no prefix
        elif dataclasses.is_dataclass(value):
            yield from _options(type(value), value, name)
        elif field.init and jax.Array not in (hints[field.name], *typing.get_args(hints[field.name])):
            yield name, hints[field.name]


def _option_name(argument: str) -> str | None:
    """The dotted name in an argument, or None for a value."""
    if not re.match(r"--?[A-Za-z]", argument):
        return None
    return argument.lstrip("-").split("=", 1)[0].replace("-", "_")


def _refuse_unknown(arguments: Sequence[str], known: dict[str, Any]) -> None:
    for argument in arguments:
        name = _option_name(argument)
        if name is None or name in known or argument in ("-h", "--help"):
            continue
        head, _, last = name.rpartition(".")
        positive = f"{head}.{last.removeprefix('no_')}".lstrip(".")
        if last.startswith("no_") and known.get(positive) is bool:
            continue
        same_end = [option for option in known if option.rpartition(".")[2] == last]
        close = same_end or difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
        ends = {option.rpartition(".")[2]: option for option in known}
        close = close or [ends[end] for end in difflib.get_close_matches(last, list(ends), n=1, cutoff=0.7)]
        written = argument.split("=", 1)[0]
        hint = (
            f"did you mean {' or '.join('--' + option for option in close[:3])}?" if close else "--help lists them all"
        )
        raise ConfigError(f"there is no option {written}; {hint}")


def _refuse_again(arguments: Sequence[str], known: dict[str, Any]) -> None:
    # Of an option with several values the last would stand, and the others be lost.
    names = [_option_name(argument) for argument in arguments]
    for name in names:
        several = typing.get_origin(known.get(name or "")) in (tuple, dict, Mapping)
        optional = any(typing.get_origin(each) is tuple for each in typing.get_args(known.get(name or "")))
        if names.count(name) > 1 and (several or optional):
            raise ConfigError(
                f"--{name} is given {names.count(name)} times: give it once, with all its values behind it"
            )


def _refuse_nothing(arguments: Sequence[str], kind: Any, known: dict[str, Any]) -> None:
    # Of an option of several values without any: what it would mean is what leaving it out means.
    empty = {field.name for field in dataclasses.fields(typing.get_origin(kind) or kind) if field.default == ()}
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        name = _option_name(argument)
        if name in empty and "=" not in argument and following.startswith("--"):
            raise ConfigError(f"--{name} takes {described(known[name])}, got nothing: give it a value, or leave it out")


def _explain(groups: Sequence[Sequence[str]], known: dict[str, Any], default: Any) -> None:
    """Raises what is wrong with options that tyro refuses: a value of another type, or one that a dataclass refuses."""
    values: dict[str, Any] = {}
    for first, *rest in groups:
        name = _option_name(first) or ""
        given = [*first.split("=", 1)[1:], *rest]
        head, _, last = name.rpartition(".")
        positive = name if known.get(name) is bool else f"{head}.{last.removeprefix('no_')}".lstrip(".")
        if known.get(positive) is bool:  # a switch
            if given:
                off = f"{head}.no_{positive.rpartition('.')[2]}".lstrip(".")
                raise ConfigError(
                    f"--{name} takes no value, got {' '.join(given)!r}; --{positive} switches on, --{off} off"
                )
            values[positive] = name == positive
            continue
        if name not in known:
            continue
        alone = dataclasses.make_dataclass("Alone", [("value", known[name])])
        try:
            values[name] = _parse(alone, ["--value", *given], "", None).value
        except _Refused:
            got = f"got {' '.join(given)!r}" if given else "got nothing"
            raise ConfigError(f"--{name} takes {described(known[name])}, {got}") from None
    _replaced(getattr(default, "config", default), values)


def _replaced(value: Any, changes: dict[str, Any], where: str = "") -> Any:
    """``value`` with the fields at the dotted names of ``changes`` replaced."""
    inner: dict[str, dict[str, Any]] = {}
    for name, change in changes.items():
        head, _, tail = name.partition(".")
        inner.setdefault(head, {})[tail] = change
    made = {
        head: part[""] if "" in part else _replaced(getattr(value, head), part, f"{where}.{head}".lstrip("."))
        for head, part in inner.items()
        if hasattr(value, head)
    }
    with as_config_error(where or "configuration"):
        return dataclasses.replace(value, **made)

"""onnxruntime sessions: made with clear errors, run with clear errors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError

from ucpe_onnx.errors import ModelError, UsageError
from ucpe_onnx.model.files import PROTOBUF_LIMIT
from ucpe_onnx.model.folders import TemporaryFolder
from ucpe_onnx.model.offload import complete, has_offloaded, model_file
from ucpe_onnx.model.serialise import model_size
from ucpe_onnx.runtime.cores import usable_cores

ModelLike: TypeAlias = bytes | str | os.PathLike[str] | onnx.ModelProto
_Request: TypeAlias = tuple[str, dict[str, str]]

QUIET = 4
"""Log severity "fatal": what onnxruntime logs as an error it also raises, and one line on stderr is enough."""

OPT_LEVELS: dict[str, str] = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}

_THREADS_OPTION = {"OpenVINOExecutionProvider": "num_of_threads"}
"""What a provider calls the number of its threads, if it looks at no setting of the session."""

_PROVIDER_SHORTHANDS = {"trt": "tensorrt", "directml": "dml"}

_SOURCE_LOCATION = re.compile(
    r"(?<!\S)\S+\.(?:cc|h|hpp|cpp|cu|cuh):\d+ "  # a file of onnxruntime's
    r"(?:(?:[\w:<>~*&]+ )*[\w:<>~]+\(.*?\)(?: const)? (?=[A-Z]))?"  # then, maybe, the C++ signature of a function
)


@runtime_checkable
class Session(Protocol):
    """The part of ``onnxruntime.InferenceSession`` that is used here."""

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> Sequence[Any]:
        """Run the model once."""

    def get_inputs(self) -> Sequence[Any]:
        """Describe the inputs."""

    def get_outputs(self) -> Sequence[Any]:
        """Describe the outputs."""


@dataclass(frozen=True)
class RunOptions:
    """How onnxruntime runs a model; every measurement and check of one run shares these.

    Attributes:
        providers: execution providers in order of preference, ``"cuda"`` as well as ``"CUDAExecutionProvider"``.
        threads: threads within an operator; 0 for as many as the process may use cores.
        opt_level: graph optimisation level, a key of ``OPT_LEVELS``.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: int = 0
    opt_level: str = "all"

    @property
    def used_threads(self) -> int:
        """Threads within an operator, counted."""
        return self.threads or usable_cores()

    def __post_init__(self) -> None:
        if self.opt_level not in OPT_LEVELS:
            raise UsageError(f"--opt-level: unknown level {self.opt_level!r}; choose from {', '.join(OPT_LEVELS)}")
        if self.threads < 0:
            raise UsageError(f"--threads: {self.threads} is negative; give a count, or 0 for all cores")


def resolve_providers(names: Iterable[str]) -> tuple[str, ...]:
    """Turn spellings like ``cpu`` or ``CUDA`` into the names of providers that this onnxruntime has.

    Raises:
        UsageError: no name is given, or one that this build of onnxruntime does not offer.
    """
    available: list[str] = ort.get_available_providers()
    by_spelling = {_spelling(name): name for name in available}
    resolved: dict[str, None] = {}
    for name in names:
        provider = by_spelling.get(_spelling(name))
        if provider is None:
            raise UsageError(
                f"--providers: this onnxruntime has no {name!r}; it has {', '.join(available)}"
                " (others come with other builds, such as onnxruntime-gpu)"
            )
        resolved[provider] = None
    if not resolved:
        raise UsageError(f"--providers: none given; choose from {', '.join(available)}")
    return tuple(resolved)


def make_session(
    model: ModelLike,
    options: RunOptions | None = None,
    optimized_path: str | os.PathLike[str] | None = None,
    *,
    where: str | None = None,
    config: Mapping[str, str] | None = None,
    profile: str | os.PathLike[str] | None = None,
) -> Session:
    """Load a model into onnxruntime.

    Args:
        model: a model in memory (of any size), its bytes, or its path.
        options: how to run it.
        optimized_path: where onnxruntime shall write the graph it made of the model.
        where: what to call the model in messages; its path or graph name by default.
        config: further onnxruntime session settings, such as ``session.force_spinning_stop``.
        profile: what the name of the file begins with that onnxruntime shall write the times of its kernels to.

    Raises:
        ModelError: onnxruntime can't load the model, or can't start a provider that was asked for.
        UsageError: a provider is unknown.
    """
    options = options or RunOptions()
    providers = resolve_providers(options.providers)
    requests = tuple(_request(name, options) for name in providers)
    where = where or _describe(model)
    settings = _settings(options, optimized_path, config or {})
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, os.fspath(profile)
    if isinstance(model, onnx.ModelProto):
        session = _load_proto(model, settings, requests, where)
    else:
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise ModelError(f"{where}: no such file; give the path of an .onnx model")
        session = _load(model if isinstance(model, bytes) else os.fspath(model), settings, requests, where)
    started = session.get_providers()
    if missing := [name for name in providers if name not in started]:
        raise ModelError(
            f"{where}: onnxruntime could not start {', '.join(missing)} and fell back to {', '.join(started)};"
            " check the provider's libraries and driver, or choose another with --providers"
        )
    return cast(Session, session)


def as_session(model: ModelLike | Session, options: RunOptions | None = None, *, where: str | None = None) -> Session:
    """Return a session as it is, or make one of a model."""
    return model if isinstance(model, Session) else make_session(model, options, where=where)


def run(session: Session, feed: Mapping[str, Any], *, where: str = "the model") -> list[Any]:
    """Run a session once and return every output in graph order.

    Args:
        session: what to run.
        feed: an array per input.
        where: what to call the model in the message.

    Raises:
        ModelError: onnxruntime refuses the feed or an operator fails.
    """
    try:
        return list(session.run(None, feed))
    except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
        raise ModelError(f"{where}: onnxruntime can't run it: {ort_message(error)}") from error


def ort_message(error: BaseException) -> str:
    """The part of an onnxruntime message that a user can act on, in one line.

    Error codes, source locations of onnxruntime's own files and C++ signatures are dropped.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = _SOURCE_LOCATION.sub("", text)
    return text if len(text) <= 300 else text[:297] + "..."


def _spelling(name: str) -> str:
    short = name.strip().lower().removesuffix("executionprovider")
    return _PROVIDER_SHORTHANDS.get(short, short)


def _describe(model: ModelLike) -> str:
    if isinstance(model, onnx.ModelProto):
        return model.graph.name or "the model"
    return "the model" if isinstance(model, bytes) else os.fspath(model)


def _settings(options: RunOptions, optimized_path: str | os.PathLike[str] | None, config: Mapping[str, str]) -> Any:
    settings = ort.SessionOptions()
    settings.log_severity_level = QUIET
    settings.intra_op_num_threads = options.used_threads
    levels = ort.GraphOptimizationLevel
    # "layout" came with onnxruntime 1.22; before, "all" was the level that held the layout transformations.
    settings.graph_optimization_level = getattr(levels, OPT_LEVELS[options.opt_level], levels.ORT_ENABLE_ALL)
    if optimized_path is not None:
        settings.optimized_model_filepath = os.fspath(optimized_path)
    for key, value in config.items():
        settings.add_session_config_entry(key, value)
    return settings


def _request(provider: str, options: RunOptions) -> _Request:
    """A provider with the options that it takes."""
    setting = _THREADS_OPTION.get(provider)
    return provider, {setting: str(options.threads)} if setting and options.threads else {}


def _load(model: bytes | str, settings: Any, providers: tuple[_Request, ...], where: str) -> Any:
    try:
        # Without enable_fallback=0 onnxruntime prints a failure to stdout and goes on with other providers.
        return ort.InferenceSession(model, settings, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime raises classes of its own that share no base but Exception
        raise ModelError(f"{where}: onnxruntime can't load it: {ort_message(error)}") from error


def _load_proto(model: onnx.ModelProto, settings: Any, providers: tuple[_Request, ...], where: str) -> Any:
    if has_offloaded(model) and not _too_large(model.ByteSize):
        with model_file(model) as path:
            return _load(path, settings, providers, where)
    model = complete(model)
    if not _too_large(lambda: model_size(model)):
        return _load(model.SerializeToString(), settings, providers, where)
    # onnx moves the weights of the very proto that it is given out to the file: save a copy.
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # onnxruntime has read or mapped the files once the session exists; Windows keeps mapped files, hence the ignore.
    with TemporaryFolder() as folder:
        path = os.path.join(folder, "model.onnx")
        try:
            onnx.save_model(copy, path, save_as_external_data=True, location="weights", convert_attribute=True)
        except (OSError, EncodeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{where}: can't be written to {folder} to be loaded ({reason}); free disk space"
            ) from error
        del copy
        return _load(path, settings, providers, where)


def _too_large(size: Callable[[], int]) -> bool:
    try:
        return size() >= PROTOBUF_LIMIT
    except (EncodeError, ValueError):  # some versions of protobuf refuse to count that far
        return True

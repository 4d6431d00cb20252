"""GoogleSQL in this process: Google's own analyser and reference evaluator of BigQuery's SQL, as a WebAssembly module.

It is an optional part (`pip install 'pulso-etl[googlesql]'`), and it sends nothing anywhere. The first use compiles the module,
which takes about ten seconds of processor time. The machine code is kept in the user's cache folder, so later processes load it in
half a second.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar
from weakref import finalize

from pulso_etl.sync.errors import SettingsError, SourceError

if TYPE_CHECKING:
    import wasmtime

log = logging.getLogger(__name__)

SERVICE = "ZetaSqlLocalService_"
SIZE = 4
"""Bytes of a length in the module's memory."""


STACK = 64 * 2**20
"""Bytes of stack for one call: a statement that is nested needs much. The system gives a thread the memory that it really uses."""


class EngineMissing(SettingsError):
    """The optional packages are not installed."""


class EngineFailed(SourceError):
    """The engine itself failed on a request, such as a statement that is nested too deeply."""


class EngineRefused(SourceError):
    """The engine refuses a request. The message is the engine's own."""


class Message(Protocol):
    """A message of Protocol Buffers."""

    def SerializeToString(self) -> bytes: ...
    @classmethod
    def FromString(cls, data: bytes, /) -> Self: ...


Answer = TypeVar("Answer", bound=Message)


class Engine:
    """One instance of the module, in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        """Compiles the module, or loads it from the folder. Raises EngineMissing."""
        try:
            import wasmtime
            from zetasql.wasi import get_wasm_path
        except ImportError as error:
            raise EngineMissing(f"GoogleSQL is not installed ({error}); run: pip install 'pulso-etl[googlesql]'") from None
        self._faults = (wasmtime.WasmtimeError, wasmtime.Trap)
        self._thread = _thread(STACK + STACK // 4)
        config = wasmtime.Config()
        config.shared_memory = True
        _deepen(config)
        # Half the time to compile. A statement takes milliseconds in any case.
        config.cranelift_opt_level = "none"
        config.cranelift_flag_set("regalloc_algorithm", "single_pass")
        engine = wasmtime.Engine(config)
        module = _compiled(engine, Path(get_wasm_path()), folder)
        zones = str(files("tzdata") / "zoneinfo")
        system = wasmtime.WasiConfig()
        system.preopen_dir(zones, "/usr/share/zoneinfo", fs_mutable=False)
        self._store = wasmtime.Store(engine)
        self._store.set_wasi(system)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        self._exports: Any = linker.instantiate(self._store, module).exports(self._store)
        self._exports["_initialize"](self._store)
        # Its parts go before wasmtime does at the end of the process; otherwise they complain on standard error.
        finalize(self, self.__dict__.clear)

    def call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        """The engine's answer to a request. Raises EngineRefused, and EngineFailed."""
        try:
            return answer.FromString(self._thread.submit(self._call, method, request.SerializeToString()).result())
        except self._faults as error:
            # A fault can leave the instance's memory in any state.
            engine.cache_clear()
            reason = str(error).strip().splitlines()[-1].strip()
            raise EngineFailed(f"GoogleSQL's engine failed on the statement; is it nested very deeply? {reason}") from None

    def _call(self, method: str, request: bytes) -> bytes:
        sent, size = self._run("wasm_malloc", len(request) or 1), self._run("wasm_malloc", SIZE)
        try:
            ctypes.memmove(self._base + sent, request, len(request))
            given = self._run(SERVICE + method, sent, len(request), size)
            if not given:
                told = self._read(self._run("wasm_get_last_error"), self._run("wasm_get_last_error_size"))
                raise EngineRefused(told.decode("utf-8", "replace").partition("Message: ")[2])
            answer = self._read(given, int.from_bytes(self._read(size, SIZE), "little"))
            self._run("wasm_free", given)
            return answer
        finally:
            self._run("wasm_free", sent)
            self._run("wasm_free", size)

    def _run(self, function: str, *arguments: int) -> int:
        return self._exports[function](self._store, *arguments)  # type: ignore[no-any-return]

    @property
    def _base(self) -> int:
        """Where the module's memory begins in this process."""
        return ctypes.addressof(self._exports["memory"].data_ptr().contents)

    def _read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(self._base + address, size)


def _deepen(config: wasmtime.Config) -> None:
    """Gives calls the stack of STACK bytes. Where wasmtime has no such setting, they keep the usual half a megabyte."""
    import wasmtime

    # Without the first setting, the second one ends the process.
    with suppress(AttributeError):
        wasmtime._bindings.wasmtime_config_async_stack_size_set(config.ptr(), STACK)
        config.max_wasm_stack = STACK


def _thread(stack: int) -> ThreadPoolExecutor:
    """A thread with so many bytes of stack, which does one thing after the other."""
    before = threading.stack_size(stack)
    try:
        executor = ThreadPoolExecutor(1, "googlesql")
        executor.submit(int).result()
        return executor
    finally:
        threading.stack_size(before)


@cache
def engine() -> Engine:
    """The engine of this process. Raises EngineMissing."""
    return Engine(cache_folder())


def cache_folder() -> Path:
    """Where this user keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pulso-etl"


def is_kept() -> bool:
    """Whether this machine has the module compiled, so that the engine starts at once."""
    with suppress(PackageNotFoundError):
        return _kept(cache_folder()).is_file()
    return False


def _kept(folder: Path) -> Path:
    return folder / f"googlesql-{version('zetasql')}-wasmtime-{version('wasmtime')}.bin"


def _compiled(engine: wasmtime.Engine, source: Path, folder: Path) -> wasmtime.Module:
    """The module of the file `source`, compiled for this machine. One process at a time compiles."""
    import wasmtime

    kept = _kept(folder)
    if (module := _loaded(engine, kept)) is not None:
        return module
    with ExitStack() as stack:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context((folder / "googlesql.lock").open("wb")), fcntl.LOCK_EX)
        except OSError as error:
            log.warning("GoogleSQL can't be kept in %s: %s", folder, error.strerror)
        if (module := _loaded(engine, kept)) is not None:
            return module
        log.warning("GoogleSQL is compiled for this machine, which takes about ten seconds of processor time")
        module = wasmtime.Module.from_file(engine, str(source))
        try:
            _keep(kept, module.serialize())
        except OSError as error:
            log.warning("GoogleSQL can't be kept in %s: %s", folder, error.strerror)
        return module


def _loaded(engine: wasmtime.Engine, file: Path) -> wasmtime.Module | None:
    """The module that an earlier process kept. None if there is none, or if it is of another machine."""
    import wasmtime

    content = _own(file)
    if content is None:
        return None
    with suppress(wasmtime.WasmtimeError):
        return wasmtime.Module.deserialize(engine, content)
    return None


def _own(file: Path) -> bytes | None:
    """The file's content, if only this user can have written it: it is machine code. None otherwise, or without a file."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as opened:
        told = os.fstat(descriptor)
        others = told.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return opened.read() if stat.S_ISREG(told.st_mode) and told.st_uid == os.geteuid() and not others else None


def _keep(file: Path, content: bytes) -> None:
    """Writes the file as a whole, so that no other process ever reads a part of it. Removes those of other versions."""
    descriptor, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    for other in file.parent.glob("googlesql-*.bin"):
        if other != file:
            other.unlink(missing_ok=True)

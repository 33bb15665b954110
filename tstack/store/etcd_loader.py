"""etcd's protocol, as the `etcd3` package carries it, on whatever protobuf is installed.

`etcd3` 0.12 was generated in 2020, and protobuf from 4 on refuses code of that age: "Descriptors cannot be created
directly". What the generated files describe is still true, though: each holds its .proto file in serialized form. So
when the import fails, this module reads those bytes out of the installed files (it parses them and never runs them),
builds the message classes in a descriptor pool of their own, puts modules of the names that `etcd3` asks for in place,
and imports it again. Nothing of etcd's or etcd3's code is copied, and an `etcd3` that imports by itself is left alone.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tstack.errors import Failure

# gRPC's core writes to standard error by itself; what goes wrong reaches us as errors anyway
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
import grpc

PACKAGE = "etcd3.etcdrpc"
PROTOS = ("kv_pb2", "auth_pb2", "rpc_pb2")
"""The generated modules, each behind those that it imports."""

REINSTALL = "install the packages again: pip install --force-reinstall 'etcd3>=0.12,<0.13' grpcio protobuf"


def load() -> ModuleType:
    """The module `etcd3.etcdrpc`: etcd's message classes and the stubs of its services.

    Raises `Failure` when `etcd3` is not installed or is none that we know.
    """
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as error:
        raise Failure(f"the package etcd3 cannot be imported: {error}", REINSTALL) from None
    except TypeError:
        return _build(_folder())


def _folder() -> Path:
    """Where the generated files lie, found without importing the package."""
    spec = importlib.util.find_spec("etcd3")
    if spec is None or not spec.submodule_search_locations:
        raise Failure("the package etcd3 is not installed", REINSTALL)
    return Path(spec.submodule_search_locations[0]) / "etcdrpc"


def _build(folder: Path) -> ModuleType:
    """Put `etcd3.etcdrpc` and the modules in it together from the descriptors in `folder`, and import `etcd3` on them."""
    pool = descriptor_pool.DescriptorPool()
    whole = ModuleType(PACKAGE, "etcd's messages and services, built from their descriptors")
    whole.__path__ = []
    made = {PACKAGE: whole}
    for name in PROTOS:
        try:
            proto = descriptor_pb2.FileDescriptorProto.FromString(_serialized(folder / f"{name}.py"))
            pool.Add(proto)
        except (DecodeError, TypeError) as error:
            raise Failure(f"the package etcd3 is damaged: {name}.py: {error}", REINSTALL) from None
        made[f"{PACKAGE}.{name}"] = module = ModuleType(f"{PACKAGE}.{name}")
        for key, value in (*_messages(pool, proto), *_stubs(pool, proto)):
            setattr(module, key, value)
            setattr(whole, key, value)
        setattr(whole, name, module)
    sys.modules.update(made)
    try:
        importlib.import_module("etcd3")
    except BaseException:
        for name in made:
            sys.modules.pop(name, None)
        raise
    return whole


def _serialized(path: Path) -> bytes:
    """The serialized .proto of a generated file: what it gives as `serialized_pb` to `FileDescriptor`."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        raise Failure(f"the package etcd3 is damaged: {path.name}: {error}", REINSTALL) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            literals = [leaf.value for leaf in ast.walk(node.value) if isinstance(leaf, ast.Constant)]
            if len(literals) == 1 and isinstance(literals[0], str | bytes):  # _b('...') or b'...'
                text = literals[0]
                return text if isinstance(text, bytes) else text.encode("latin-1")
    raise Failure(f"the package etcd3 is none that is known here: {path.name} has no serialized_pb", REINSTALL)


def _messages(pool: Any, proto: Any) -> Iterator[tuple[str, Any]]:
    """The message classes of a file, and its enumerations' numbers, which generated code has as plain names."""
    package = proto.package
    for message in proto.message_type:
        yield message.name, message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{message.name}"))
    for enum in proto.enum_type:
        yield from ((value.name, value.number) for value in enum.value)


def _stubs(pool: Any, proto: Any) -> Iterator[tuple[str, type]]:
    """A stub class for each service of a file: `KVStub(channel).Range(request, timeout=...)`."""
    for service in proto.service:
        descriptor = pool.FindServiceByName(f"{proto.package}.{service.name}")
        yield f"{service.name}Stub", _stub(descriptor, {method.name: method for method in service.method})


def _stub(service: Any, shapes: dict[str, Any]) -> type:
    def __init__(self: Any, channel: Any) -> None:  # noqa: N807 - it becomes the class's own
        for method in service.methods:
            shape = shapes[method.name]
            sends = "stream" if shape.client_streaming else "unary"
            gets = "stream" if shape.server_streaming else "unary"
            call = getattr(channel, f"{sends}_{gets}")(
                f"/{service.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)

    return type(
        f"{service.name}Stub", (), {"__init__": __init__, "__doc__": f"Calls of etcd's {service.name} service."}
    )


etcdrpc: Any = load()
"""etcd's messages and stubs; `Any`, because `etcd3` has no types."""

__all__ = ["etcdrpc", "grpc", "load"]

"""etcd's messages come out of the installed `etcd3`, whatever protobuf says to it."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, run
from tstack.store.etcd_loader import PROTOS, etcdrpc

GENERATED = Path(importlib.util.find_spec("etcd3").submodule_search_locations[0]) / "etcdrpc"  # type: ignore[union-attr, index]


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run it in an interpreter of its own, with every warning an error and `path` before what is installed."""
    where = ":".join(str(folder) for folder in (*path, ROOT))
    return run([sys.executable, "-W", "error", "-c", code], env={"PYTHONPATH": where, "PYTHONDONTWRITEBYTECODE": "1"})


def imitation(folder: Path, rpc: str) -> Path:
    """A package named etcd3 in `folder`, whose etcdrpc is the given text."""
    package = folder / "etcd3"
    (package / "etcdrpc").mkdir(parents=True)
    (package / "__init__.py").write_text("import etcd3.etcdrpc\n")
    (package / "etcdrpc" / "__init__.py").write_text(rpc)
    return folder


def refusing(folder: Path) -> Path:
    """The real generated files in a package that raises what protobuf raises, so that they must be read."""
    place = imitation(folder, "raise TypeError('Descriptors cannot be created directly.')\n")
    for name in PROTOS:
        shutil.copy(GENERATED / f"{name}.py", place / "etcd3" / "etcdrpc")
    return place


def test_it_loads_without_a_warning_and_etcd3_with_it() -> None:
    done = python(
        "from tstack.store.etcd_loader import etcdrpc\n"
        "import etcd3, etcd3.etcdrpc.kv_pb2, etcd3.etcdrpc.rpc_pb2 as rpc\n"
        "assert etcd3.etcdrpc is etcdrpc and rpc.RangeRequest is etcdrpc.RangeRequest\n"
        "assert etcd3.Etcd3Client\n"
        "print(etcdrpc.RangeRequest(key=b'k', limit=2).SerializeToString().hex())\n"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "0a016b1802"


def test_messages_are_read_out_of_files_that_are_not_run(tmp_path: Path) -> None:
    place = refusing(tmp_path)
    for name in PROTOS:
        file = place / "etcd3" / "etcdrpc" / f"{name}.py"
        file.write_text(file.read_text() + "\nraise SystemExit('it was run')\n")
    done = python(
        "from tstack.store.etcd_loader import etcdrpc\n"
        "import etcd3\n"
        f"assert etcd3.__file__.startswith({str(tmp_path)!r})\n"
        "assert etcdrpc.Compare(target='MOD', result='EQUAL', mod_revision=7).mod_revision == 7\n"
        "assert (etcdrpc.NONE, etcdrpc.NOSPACE, etcdrpc.Compare.GREATER) == (0, 1, 1)\n",
        place,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_stubs_name_the_calls_as_etcd_does() -> None:
    calls: dict[str, str] = {}

    class Channel:
        def __getattr__(self, shape: str) -> object:
            return lambda path, request_serializer, response_deserializer: calls.__setitem__(path, shape)

    for stub in (etcdrpc.KVStub, etcdrpc.WatchStub, etcdrpc.LeaseStub, etcdrpc.AuthStub, etcdrpc.MaintenanceStub):
        stub(Channel())
    assert calls["/etcdserverpb.KV/Range"] == "unary_unary"
    assert calls["/etcdserverpb.Watch/Watch"] == "stream_stream"
    assert calls["/etcdserverpb.Lease/LeaseKeepAlive"] == "stream_stream"
    assert calls["/etcdserverpb.Maintenance/Snapshot"] == "unary_stream"
    assert "/etcdserverpb.Auth/Authenticate" in calls


def test_an_etcd3_that_imports_by_itself_is_left_alone(tmp_path: Path) -> None:
    place = imitation(tmp_path, "KVStub = 'its own'\n")
    done = python("from tstack.store.etcd_loader import etcdrpc; assert etcdrpc.KVStub == 'its own'", place)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("rpc", "files", "words"),
    [
        ("import no_such_module\n", {}, "cannot be imported"),
        ("raise TypeError('no')\n", {}, "damaged"),
        ("raise TypeError('no')\n", {"kv_pb2": "DESCRIPTOR = ("}, "damaged"),
        ("raise TypeError('no')\n", {"kv_pb2": "DESCRIPTOR = None\n"}, "none that is known"),
        ("raise TypeError('no')\n", {"kv_pb2": "x(serialized_pb=b'\\xff\\xff')\n"}, "damaged"),
    ],
)
def test_an_etcd3_that_is_of_no_use(tmp_path: Path, rpc: str, files: dict[str, str], words: str) -> None:
    place = imitation(tmp_path, rpc)
    for name, text in files.items():
        (place / "etcd3" / "etcdrpc" / f"{name}.py").write_text(text)
    done = python(
        "from tstack.errors import Failure\n"
        "try:\n"
        "    import tstack.store.etcd_loader\n"
        "except Failure as failure:\n"
        "    print(failure.message, '|', failure.hint)\n",
        place,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert words in done.stdout
    assert "pip install" in done.stdout


def test_nothing_of_it_is_loaded_for_the_embedded_store() -> None:
    done = python(
        "import sys, tstack.store.embedded; assert not {'grpc', 'etcd3', 'google.protobuf'} & set(sys.modules)"
    )
    assert (done.returncode, done.stderr) == (0, "")

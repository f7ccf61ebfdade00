"""`benchmarks/peers.py` with llama.cpp: what its server and its converter are asked for. Both are stand-ins here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# Continues a prompt by the number of requests' slots and the sum of its ids, and records how it was started and asked.
SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

if sys.argv[1:] == ["--version"]:
    sys.exit(print("version: 1234 (abcdef)", file=sys.stderr))
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if Path(options["--model"]).read_text() == "broken":
    sys.exit("error: no such tensor")
Path(sys.argv[0] + ".options").write_text(json.dumps(options))
asked, writing = [], Lock()


class Handler(BaseHTTPRequestHandler):
    loading = True

    def do_GET(self):
        self.answer(503 if Handler.loading else 200, {{"path": self.path}})
        Handler.loading = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with writing:  # requests come at the same time
            asked.append(body)
            Path(sys.argv[0] + ".asked").write_text(json.dumps(asked))
        if len(body["prompt"]) > 9:
            return self.answer(400, {{"error": {{"message": "the request exceeds the context"}}}})
        self.answer(200, {{"tokens": [sum(body["prompt"]) + step for step in range(body["n_predict"])]}})

    def answer(self, status, reply):
        text = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""
CONVERTER = """
import sys
from pathlib import Path

folder, outtype, precision, outfile, target = sys.argv[1:]
assert outtype == "--outtype" and outfile == "--outfile"
if not (Path(folder) / "config.json").exists():
    sys.exit("no config.json")
Path(target).write_text(precision)
"""


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import peers

    return peers


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(SERVER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def options_of(server: Path | None, **changes: Any) -> argparse.Namespace:
    systems = ["generate", "llama.cpp", "llama.cpp-bf16", "llama.cpp-q8"]
    return argparse.Namespace(
        **{"systems": systems, "llama_server": server, "gguf": {}, "gguf_converter": None} | changes
    )


def rows_of(peers: Any, *lengths: int) -> list[Any]:
    """Return rows of `lengths` prompt tokens, each with one new token more than the last."""
    return [peers.Row("", list(range(length)), number + 1) for number, length in enumerate(lengths)]


def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_rows_are_continued_by_the_server_with_a_converted_model(peers: Any, server: Path, tmp_path: Path) -> None:
    (converter := tmp_path / "convert.py").write_text(CONVERTER)
    folder, rows = model_folder(tmp_path), rows_of(peers, 9, 3, 4)
    options = options_of(server, gguf_converter=f"{sys.executable} {converter}")
    peers.provide_llama_cpp(options, folder, rows)
    run = peers.SYSTEMS["llama.cpp-q8"].prepare(folder, 2)
    assert run(rows) == [[36], [3, 4], [6, 7, 8]]
    assert options.systems == ["generate", "llama.cpp", "llama.cpp-bf16", "llama.cpp-q8"]
    assert (folder / "llama.cpp-q8_0.gguf").read_text() == "q8_0"
    started = json.loads(Path(f"{server}.options").read_text())
    assert started["--parallel"] == "2"
    assert int(started["--ctx-size"]) >= 2 * 10, "each slot has room for the longest row"
    assert started["--cache-type-k"] == started["--cache-type-v"] == "f16"
    greedy = {"top_k": 1, "ignore_eos": True, "cache_prompt": False, "return_tokens": True}
    for body in json.loads(Path(f"{server}.asked").read_text()):
        assert greedy.items() <= body.items()


def test_float32_keeps_its_cache_in_float32_and_the_server_ends_with_the_system(
    peers: Any, server: Path, tmp_path: Path
) -> None:
    (gguf := tmp_path / "given.gguf").write_text("f32")
    folder, rows = model_folder(tmp_path), rows_of(peers, 3)
    options = options_of(server, gguf={"f32": gguf})
    peers.provide_llama_cpp(options, folder, rows)
    run = peers.SYSTEMS["llama.cpp"].prepare(folder, 1)
    assert json.loads(Path(f"{server}.options").read_text())["--cache-type-v"] == "f32"
    children = psutil.Process().children()
    assert any(str(server) in child.cmdline() for child in children)
    del run
    assert not any(str(server) in child.cmdline() for child in psutil.Process().children())


def test_what_the_server_refuses_is_said(peers: Any, server: Path, tmp_path: Path) -> None:
    (gguf := tmp_path / "given.gguf").write_text("f32")
    folder, rows = model_folder(tmp_path), rows_of(peers, 10)
    peers.provide_llama_cpp(options_of(server, gguf={"f32": gguf}), folder, rows)
    run = peers.SYSTEMS["llama.cpp"].prepare(folder, 1)
    with pytest.raises(RuntimeError, match="exceeds the context"):
        run(rows)
    gguf.write_text("broken")
    with pytest.raises(RuntimeError, match="status 1: error: no such tensor"):
        peers.SYSTEMS["llama.cpp"].prepare(folder, 1)


def test_a_converter_that_fails_says_why(peers: Any, server: Path, tmp_path: Path) -> None:
    (converter := tmp_path / "convert.py").write_text(CONVERTER)
    (empty := tmp_path / "empty").mkdir()
    options = options_of(server, gguf_converter=f"{sys.executable} {converter}")
    peers.provide_llama_cpp(options, empty, rows_of(peers, 3))
    with pytest.raises(RuntimeError, match=r"status 1: no config\.json"):
        peers.SYSTEMS["llama.cpp"].prepare(empty, 1)


def test_without_what_it_needs_llama_cpp_is_skipped(
    peers: Any, server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(peers, 3)
    options = options_of(None)
    peers.provide_llama_cpp(options, model_folder(tmp_path), rows)
    assert options.systems == ["generate"]
    assert "SKIPPED llama.cpp-bf16: no llama.cpp: give --llama-server" in capsys.readouterr().err
    (gguf := tmp_path / "given.gguf").touch()
    options = options_of(server, gguf={"bf16": gguf})
    peers.provide_llama_cpp(options, tmp_path, rows)
    assert options.systems == ["generate", "llama.cpp-bf16"]
    said = capsys.readouterr().err
    assert "SKIPPED llama.cpp: no GGUF: give --gguf f32=FILE or --gguf-converter" in said
    assert "SKIPPED llama.cpp-q8: no GGUF: give --gguf q8_0=FILE" in said


def test_the_table_names_the_version(peers: Any, server: Path) -> None:
    assert peers.machine(server)["packages"]["llama.cpp"] == "1234 (abcdef)"
    assert "llama.cpp" not in peers.machine(None)["packages"]


def test_options_for_llama_cpp_are_read_and_checked(
    peers: Any, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gguf := tmp_path / "given.gguf").touch()
    monkeypatch.setattr(sys, "argv", ["peers.py", "--llama-server", str(server), "--gguf", f"q8_0={gguf}"])
    options = peers.parse_options()
    assert options.gguf == {"q8_0": gguf}
    assert options.llama_server == server
    for words in (["--gguf", f"q9={gguf}"], ["--gguf", "f32=missing"], ["--llama-server", "missing"]):
        monkeypatch.setattr(sys, "argv", ["peers.py", *words])
        with pytest.raises(SystemExit):
            peers.parse_options()

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from batchgen.machine.speeds import (
    KeptGain,
    Settings,
    Speed,
    kept_rows,
    read_gain,
    read_speed,
    speed_of,
    write_gain,
    write_settings,
    write_speed,
)
from batchgen.records import RunStats

STATS = RunStats(
    rows=10, errors=0, blank_lines=0, batches=2, prompt_tokens=900, output_tokens=100, pad_tokens=100, prefill_s=2.0,
    decode_s=4.0, wall_s=7.0, peak_bytes=0, decode_work=800,
)  # fmt: skip
SPEED = Speed(500.0, 200.0, "2026-01-02")


def test_a_speed_is_work_over_seconds() -> None:
    speed = speed_of(STATS)
    assert speed is not None
    assert (speed.prefill_per_s, speed.decode_per_s) == (500.0, 200.0)
    assert speed.seconds(1000, 800) == 6.0


@pytest.mark.parametrize("changes", [{"prefill_s": 0.1, "decode_s": 0.1}, {"decode_work": 0}, {"prompt_tokens": -100}])
def test_a_run_too_short_to_tell_has_no_speed(changes: dict[str, float]) -> None:
    assert speed_of(replace(STATS, **changes)) is None


def test_a_speed_is_remembered_for_its_model_device_and_dtype(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    write_speed(SPEED, "gpt2", "cpu", "float32", "continuous", environ)
    write_speed(replace(SPEED, decode_per_s=9.0), "gpt2", "cpu", "bfloat16", "continuous", environ)
    assert read_speed("gpt2", "cpu", "float32", "continuous", environ) == SPEED
    assert read_speed("gpt2", "cuda", "float32", "continuous", environ) is None


def test_without_an_xdg_folder_the_home_s_cache_serves(tmp_path: Path) -> None:
    write_speed(SPEED, "gpt2", "cpu", "float32", "continuous", {"HOME": str(tmp_path)})
    assert (tmp_path / ".cache" / "batchgen" / "speeds.json").is_file()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"gpt2 cpu float32": 1}', '{"gpt2 cpu float32": {"date": "x"}}'])
def test_a_broken_file_is_no_error(tmp_path: Path, text: str) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    path = tmp_path / "batchgen" / "speeds.json"
    path.parent.mkdir()
    path.write_text(text)
    assert read_speed("gpt2", "cpu", "float32", "continuous", environ) is None
    write_speed(SPEED, "gpt2", "cpu", "float32", "continuous", environ)
    assert read_speed("gpt2", "cpu", "float32", "continuous", environ) == SPEED


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    write_speed(SPEED, "gpt2", "cpu", "float32", "continuous", {"XDG_CACHE_HOME": str(tmp_path / "file")})


def test_settings_and_gains_stand_beside_the_speeds(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    gain = KeptGain("gpt2", 1.8, None, "2026-01-02")
    write_speed(SPEED, "gpt2", "cpu", "float32", "continuous", environ)
    write_settings(Settings(64, 900.0, "2026-01-02"), "gpt2", "cpu", "float32", environ)
    write_settings(Settings(8, 900.0, "2026-01-02"), "gpt2", "cpu", "bfloat16", environ)
    write_gain(gain, "cpu", environ)
    assert [kept_rows("gpt2", "cpu", dtype, environ) for dtype in ("float32", "bfloat16", "float16")] == [64, 8, None]
    assert (read_gain("cpu", environ), read_gain("cuda", environ)) == (gain, None)
    assert read_speed("gpt2", "cpu", "float32", "continuous", environ) == SPEED


@pytest.mark.parametrize(
    "text",
    ["", '{"settings": 1, "gains": []}', '{"settings": {"gpt2 cpu float32": {"rows": 0}}, "gains": {"cpu": {"x": 1}}}',
     '{"settings": {"gpt2 cpu float32": {"rows": "9", "tokens_per_s": 1, "date": ""}}}'],
)  # fmt: skip
def test_broken_settings_are_none(tmp_path: Path, text: str) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    path = tmp_path / "batchgen" / "speeds.json"
    path.parent.mkdir()
    path.write_text(text)
    assert (kept_rows("gpt2", "cpu", "float32", environ), read_gain("cpu", environ)) == (None, None)

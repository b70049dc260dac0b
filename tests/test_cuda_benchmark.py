"""The GPU benchmark itself, tried on the processor: what it counts, what it writes, when it stops."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks import cuda
from benchmarks.floor import Work
from common.errors import UserError


def bench(monkeypatch, *words: str) -> cuda.Bench:
    monkeypatch.setattr(sys, "argv", ["benchmarks.cuda", "--device", "cpu", "--size", "65x97", "--seconds", "0.1",
                                      "--frames", "4", *words])
    return cuda.Bench(cuda.parse())


def test_operations_and_bytes_of_a_step_are_counted():
    x, weight = torch.zeros(1, 3, 8, 8), torch.zeros(5, 3, 3, 3)
    query = torch.zeros(1, 2, 7, 4)
    with torch.inference_mode(), Work() as work:
        F.conv2d(x, weight, padding=1)
    assert work.flops == 2 * 5 * 3 * 9 * 64
    assert work.bytes == 4 * (x.numel() + weight.numel() + 5 * 64)
    with torch.inference_mode(), Work() as work:
        F.scaled_dot_product_attention(query, query, query)
    assert work.flops == 2 * 2 * (2 * 7 * 7 * 4)
    with torch.inference_mode(), Work() as work:
        F.linear(F.conv2d(x, weight)[0, 0, :, :4], torch.zeros(2, 4)).relu_()
    assert work.operations == {"convolutions": 2 * 5 * 3 * 9 * 36, "products": 2 * 6 * 4 * 2}


def test_cells_are_measured_written_and_printed(monkeypatch, tmp_path, capsys):
    report = tmp_path / "results" / "cuda.json"
    monkeypatch.setattr("models.precision.computes_in", lambda *_: True)  # half precision, emulated or not
    running = bench(monkeypatch, "--only", "[nf]*/aott/*", "--report", str(report))
    monkeypatch.setattr(cuda, "cells", lambda arguments: ["net/aott/3/1/fp32", "net/aott/1/1/amp", "file/aott/amp/2"])
    running.run()
    running.close()
    running.tables()
    found = json.loads(report.read_text())
    assert found["date"] and found["device"] and found["versions"]["torch"] and "benchmarks.cuda" in found["command"]
    assert list(found["cells"]) == ["net/aott/3/1/fp32", "net/aott/1/1/amp", "file/aott/amp/2"]
    assert all("failed" not in cell and cell["fps"] > 0 and cell["peak_mib"] > 0 for cell in found["cells"].values())
    assert found["cells"]["file/aott/amp/2"]["frames"] == 8
    one, two = (found["cells"][name]["memory_mib"] for name in ("net/aott/3/1/fp32", "net/aott/1/1/amp"))
    assert two < 0.7 * one, "half precision"
    assert "The whole program" in capsys.readouterr().out


def test_no_cell_starts_after_the_minutes_and_a_failing_one_does_not_end_the_others(monkeypatch, capsys):
    running = bench(monkeypatch, "--minutes", "0.1")  # less than what is kept for the tables
    running.run()
    assert not running.results and len(running.skipped) > 50
    running.close()
    running = bench(monkeypatch, "--only", "kernel/*")
    monkeypatch.setattr(cuda, "kernel", failing(RuntimeError("no such kernel\nCompile with TORCH_USE_CUDA_DSA")))
    running.run()
    running.close()
    running.results["rates"] = cuda.failure(ValueError())  # the tables do without
    running.tables()
    assert running.results.pop("rates") == {"failed": "ValueError: "}
    assert all(found["failed"] == "RuntimeError: no such kernel" for found in running.results.values())
    assert "failed: kernel/" in capsys.readouterr().out


def failing(error: Exception):
    def fail(*_):
        raise error

    return fail


def test_a_floor_that_cannot_be_counted_leaves_the_speed(monkeypatch):
    running = bench(monkeypatch, "--only", "net/aott/3/1/fp32")
    monkeypatch.setattr(cuda, "Work", failing(TypeError("no rule for this operation")))
    running.run()
    found = running.results["net/aott/3/1/fp32"]
    assert found["fps"] > 0 and found["floor_failed"] == "TypeError: no rule for this operation"
    running.close()


def test_a_peer_that_ends_or_hangs_costs_its_cells_alone(monkeypatch):
    running = bench(monkeypatch, "--peer", "nowhere", "--only", "net/aott/3/*/peer")
    monkeypatch.setattr(cuda, "PEER_SECONDS", 1.0)
    monkeypatch.setattr(running, "weights", lambda variant: None)
    program = iter(["import sys", "import time; time.sleep(60)"])  # ends at once; hangs
    real = subprocess.Popen
    monkeypatch.setattr(cuda.subprocess, "Popen",
                        lambda command, **options: real([sys.executable, "-c", next(program)], **options))
    running.run()
    assert len(running.results) > 2, "and a third start would find no program"
    assert all("UserError: the official code's process ended" in found["failed"] for found in running.results.values())
    running.close()


def test_a_training_from_files_says_how_long_it_waits(monkeypatch):
    running = bench(monkeypatch, "--only", "run/*")
    running.run()
    (found,) = running.results.values()
    assert found["steps_per_second"] > 0 and 0 <= found["waiting"] < 1, found
    running.close()


def test_a_pattern_without_a_cell_and_a_size_that_is_none_are_the_users_errors(monkeypatch):
    with pytest.raises(UserError, match="matches no cell"):
        bench(monkeypatch, "--only", "nothing").run()
    with pytest.raises(UserError, match="HEIGHTxWIDTH"):
        bench(monkeypatch, "--size", "480")

"""How every command ends: statuses, one line for what the user can mend, silence where nobody listens."""

import subprocess
import sys
import time

from tests.conftest import REPOSITORY


def test_a_reader_that_leaves_early_sees_no_traceback():
    code = "from common.command import run; run(lambda: [print('x' * 1000) for _ in range(10_000)])"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_workers_must_be_at_least_one():
    done = subprocess.run([sys.executable, "evaluate.py", "--data", "x", "--pred", "x", "--output", "x", "--workers",
                           "0"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and "--workers: 0 is not" in done.stderr.splitlines()[-1]


def test_a_command_that_is_stopped_stops_what_it_runs_and_waits_for_it(tmp_path):
    """As a demo stops its training, which leaves a checkpoint."""
    started, left = tmp_path / "started", tmp_path / "left"
    inner = f"""
import pathlib, signal, sys, time
def leave(*_):
    time.sleep(0.5)
    pathlib.Path({str(left)!r}).touch()
    sys.exit()
signal.signal(signal.SIGTERM, leave)
pathlib.Path({str(started)!r}).touch()
time.sleep(60)
"""
    outer = f"import sys; from common.command import child, run; run(lambda: child([sys.executable, '-c', {inner!r}]))"
    process = subprocess.Popen([sys.executable, "-c", outer], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 143 and left.exists()

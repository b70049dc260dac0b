"""How every command ends: statuses, one line for what the user can mend, silence where nobody listens."""

import subprocess
import sys

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

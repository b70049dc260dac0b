"""CPU seconds and wall time of evaluate.py, alone or beside the official LVOS tool.

    python -m benchmarks.evaluation --peer ../lvos-evaluation [--peer-python PYTHON]

Both sides score the same generated masks, in turn and in processes of their own: 4 videos of 100 frames, 720x1280,
with 1, 2, 3 and 2 objects, and the same with 10 objects a video. Beside them stands the cost of decoding the same
files once with Pillow. The official tool needs numpy below 2.4: --peer-python names an interpreter that has it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from common.command import run
from common.errors import UserError
from common.files import write_json
from datasets.readers import write_labels

HEIGHT, WIDTH = 720, 1280
SETS = {"1 to 3 objects": (1, 2, 3, 2), "10 objects": (10, 10, 10, 10)}
REPOSITORY = Path(__file__).resolve().parent.parent
DECODE = """
import sys, time
import numpy
from PIL import Image
paths = sys.stdin.read().splitlines()
start = time.process_time()
for path in paths:
    numpy.asarray(Image.open(path))
print(time.process_time() - start)
"""


@dataclass(frozen=True)
class Cost:
    """What one process, with its children, took: seconds."""

    wall: float
    cpu: float


def main() -> None:
    arguments = parse()
    results = {}
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        for name, objects in SETS.items():
            if arguments.only is None or arguments.only in name:
                root = Path(folder) / name.replace(" ", "_")
                print(f"{name}: generating {len(objects)} videos of {arguments.frames} frames, {HEIGHT}x{WIDTH}")
                make_set(root, objects, arguments.frames)
                results[name] = compare(root, arguments)
    if arguments.report:
        write_json(arguments.report, results)
        print(f"wrote {arguments.report}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of lvos-evaluation; without it ours is measured alone")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that runs it (default: this one)")
    parser.add_argument("--frames", type=int, default=100, help="frames a video (default 100)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs, in turn (default 3)")
    parser.add_argument("--only", help="only the set whose name holds this text")
    parser.add_argument("--report", help="write the results to this JSON file")
    return parser.parse_args()


# The masks.


def make_set(root: Path, objects: tuple[int, ...], frames: int) -> None:
    """Write a data root of the LVOS layout and predictions that are mostly right, from a fixed seed."""
    videos = {}
    for position, count in enumerate(objects):
        name = f"video{position}"
        random = np.random.default_rng(position)
        blobs = [Blob(random) for _ in range(count)]
        for frame in range(frames):
            for side, error in (("val/Annotations", 0.0), ("pred", 1.0)):
                labels = np.zeros((HEIGHT, WIDTH), np.uint8)
                for number, blob in enumerate(blobs, 1):
                    cv2.fillPoly(labels, [blob.outline(frame, error)], number)
                write_labels(root / side / name / f"{1 + 5 * frame:08d}.png", labels)
        span = {"start": 1, "end": 1 + 5 * frames, "frame_nums": frames}
        videos[name] = {"objects": {str(number): {"frame_range": span} for number in range(1, count + 1)}}
    write_json(root / "val/valid_meta.json", {"videos": videos})
    (root / "unseen.txt").write_text("video1\nvideo3\n")


class Blob:
    """A wobbling shape on a closed path; its prediction is a few pixels off, and now and then far off."""

    def __init__(self, random: np.random.Generator):
        self.centre = random.uniform((250, 180), (WIDTH - 250, HEIGHT - 180))
        self.radius, self.phase = random.uniform(50, 140), random.uniform(0, 6.28, 4)

    def outline(self, frame: int, error: float) -> np.ndarray:
        """Polygon (n, 2) int32 of the shape in a frame; ``error`` 0 is the truth."""
        angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
        time_ = frame / 25 + self.phase
        wave = 1 + 0.2 * np.sin(3 * angle + time_[0]) + 0.08 * np.sin(11 * angle + time_[1])
        wave += error * 0.03 * np.sin(17 * angle + 3 * time_[2])
        far = 60 if frame % 20 == 19 else 2
        centre = self.centre + 90 * np.array([np.sin(time_[2]), np.cos(time_[3])]) + error * far * np.sin(time_[:2])
        points = centre + self.radius * wave[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)
        return points.astype(np.int32)


# The runs.


def compare(root: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run both sides in turn, print medians and ratios."""
    paths = [str(path) for side in ("val/Annotations", "pred") for video in sorted((root / side).iterdir())
             for path in sorted(video.iterdir())[1:-1]]  # the protocol leaves out the first and the last frame
    runs: dict[str, list[Cost]] = {"help": [], "one": [], "two": [], "peer mp": [], "peer mt": []}
    decoding = []
    for _ in range(arguments.rounds):
        decoding.append(float(subprocess.run([sys.executable, "-c", DECODE], input="\n".join(paths), text=True,
                                             capture_output=True, check=True).stdout))
        runs["help"].append(measure([sys.executable, "evaluate.py", "--help"], REPOSITORY))
        for name, workers in (("one", 1), ("two", 2)):
            runs[name].append(measure(ours(root, workers), REPOSITORY))
        if arguments.peer:
            for name in ("mp", "mt"):
                runs[f"peer {name}"].append(peer(root, name, arguments))
    return report(runs, decoding, len(paths))


def ours(root: Path, workers: int) -> list[str]:
    """The command line of our side."""
    return [sys.executable, "evaluate.py", "--data", str(root), "--split", "val", "--pred", str(root / "pred"),
            "--output", str(root.with_name(root.name + "_scores")), "--no-report", "--workers", str(workers)]


def peer(root: Path, kind: str, arguments: argparse.Namespace) -> Cost:
    """Run the official tool with two processes or threads; it writes into the results, so it gets links to them."""
    results = Path(tempfile.mkdtemp(dir=root.parent))
    for video in (root / "pred").iterdir():
        (results / video.name).symlink_to(video)
    command = [arguments.peer_python, "evaluation_method.py", "--lvos_path", str(root / "val"), "--set", "valid",
               "--results_path", str(results), "--mp_nums", "2", "--m_class", kind]
    cost = measure(command, Path(arguments.peer))
    if not (results / "global_results-valid.csv").is_file():
        raise UserError(f"--peer: {' '.join(command)} wrote no scores; --peer-python must name an interpreter with "
                        "numpy < 2.4, opencv-python, pandas, scipy, scikit-image, Pillow and tqdm")
    return cost


def measure(command: list[str], folder: Path) -> Cost:
    """Run a command quietly; wall time and CPU seconds (user and system, children included)."""
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, cwd=folder, stdout=nowhere, stderr=nowhere)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command)}: failed with status {process.returncode}; run it by hand in {folder}")
    return Cost(time.perf_counter() - start, usage.ru_utime + usage.ru_stime)


def report(runs: dict[str, list[Cost]], decoding: list[float], files: int) -> dict[str, float]:
    """Print the medians and what they mean; return them."""
    cpu = {name: statistics.median(cost.cpu for cost in costs) for name, costs in runs.items() if costs}
    wall = {name: statistics.median(cost.wall for cost in costs) for name, costs in runs.items() if costs}
    decode = statistics.median(decoding)
    share = (cpu["one"] - cpu["help"]) / decode
    print(f"  decoding {files} files once with Pillow: {decode:.2f} s CPU")
    for name, label in (("help", "evaluate.py --help"), ("one", "evaluate.py --workers 1"),
                        ("two", "evaluate.py --workers 2"), ("peer mp", "official tool, 2 processes"),
                        ("peer mt", "official tool, 2 threads")):
        if name in cpu:
            print(f"  {label:<28} {wall[name]:7.2f} s wall {cpu[name]:7.2f} s CPU")
    print(f"  CPU of one worker less --help: {share:.2f} times the decoding")
    results = {"decode_cpu": decode, "share_of_decoding": share}
    results |= {f"{name} {unit}": table[name] for unit, table in (("wall", wall), ("cpu", cpu)) for name in table}
    if "peer mp" in wall:
        results["faster"] = min(wall["peer mp"], wall["peer mt"]) / wall["two"]
        print(f"  {results['faster']:.1f} times faster than the official tool's fastest setting, both with two workers")
    return results


if __name__ == "__main__":
    run(main)

"""Write each object's first annotation as a YouTube-VOS style folder: python -m tools.first_annotations ROOT OUT

For other code that wants on disk what inference here computes while it reads.
"""

from __future__ import annotations

import argparse

from common.command import run
from common.progress import Progress
from datasets.first_annotations import write_first_annotations
from datasets.records import FORMATS, open_videos


def main() -> None:
    """Parse the command line, convert, say what was written."""
    parser = argparse.ArgumentParser(prog="python -m tools.first_annotations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the data set's root folder; it is only read")
    parser.add_argument("output", help="a new folder: Annotations/, meta.json and a link to the images")
    parser.add_argument("--split", default="val")
    parser.add_argument("--format", choices=FORMATS, help="instead of the first layout that fits")
    parser.add_argument("--objects", choices=("late", "first"), help="each object where it first appears, or those of "
                                                                     "the first mask only (default: by the layout)")
    options = parser.parse_args()

    found = open_videos(options.root, options.split, format=options.format, objects=options.objects,
                        need_images=False)
    with Progress(len(found.videos), "first annotations", "video") as progress:
        warnings = write_first_annotations(found, options.output, progress.advance)
    for line in (*found.notes, *warnings):
        print(f"note: {line}")
    print(f"wrote {options.output}: Annotations of {len(found.videos)} videos, meta.json")


if __name__ == "__main__":
    run(main)

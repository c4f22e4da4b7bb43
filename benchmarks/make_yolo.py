"""Write composed scenes as a YOLO folder, as a labelling tool exports it, to try `locrl train --data` on.

Example: python benchmarks/make_yolo.py pets --train 200 --val 60
"""

import argparse
from pathlib import Path

from locrl.data.yolo import write_yolo
from locrl.experiments.config import load_data


def main():
    "Write the splits that the command line asks for"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets data.yaml, images and labels")
    parser.add_argument("--train", type=int, default=200, help="pictures to learn from (default 200)")
    parser.add_argument("--val", type=int, default=60, help="pictures to select on (default 60)")
    parser.add_argument("--classes", nargs="+", default=["cat", "dog"], help="VOC classes to draw (default: cat dog)")
    given = parser.parse_args()
    for split in ("train", "val"):
        file = write_yolo(
            load_data(f"simple-scenes:{split}:{getattr(given, split)}", given.classes), given.folder, split
        )
    print(file)


if __name__ == "__main__":
    main()

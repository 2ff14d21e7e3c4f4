"""What `dvc push` sends of the shards when 1 % of new samples come: bytes of new objects in the remote.

`python -m benchmarks.uploads [--count 1000]` prints one JSON line last. Finished shards are not written again, so it is
the new batch's own shards, the index and DVC's list of the folder. Compares with nothing: a budget of 3 % of the bytes.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.retraining import TINY, Place, open_place
from benchmarks.workspace import print_result


def main() -> None:
    """Push, add, push."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="pictures at first")
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as scratch:
        place = open_place(Path(scratch), "shapes", TINY)
        first = push_shards(place, count)
        after = push_shards(place, count + count // 100)
    print_result(
        {
            "uploaded_percent": round(100 * (after - first) / first, 2),
            "first_mb": round(first / 1e6, 1),
            "uploaded_mb": round((after - first) / 1e6, 2),
            "samples": count,
            "new_samples": count // 100,
        }
    )


def push_shards(place: Place, count: int) -> int:
    """Bring so many pictures to shards and push these; bytes that the remote has then."""
    place.add_shapes(count)
    place.run("unet", "add")
    place.run("dvc", "repro", "shard")
    place.run("dvc", "push", "data/shards")
    return sum(path.stat().st_size for path in (place.folder / "remote").rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

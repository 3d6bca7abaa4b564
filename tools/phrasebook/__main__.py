"""Write the compressed text files of the phrasebook: ``python -m tools.phrasebook OUT``."""

import lzma
import sys
from pathlib import Path

from tools.phrasebook.generate import phrasebook_splits


def write(folder: Path) -> None:
    """Write ``<split>.en.xz`` and ``<split>.vi.xz`` for every split, one sentence a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, sides in phrasebook_splits().items():
        for language, lines in zip(("en", "vi"), sides, strict=True):
            raw = "".join(f"{line}\n" for line in lines).encode()
            packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
            (folder / f"{split}.{language}.xz").write_bytes(packed)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.phrasebook OUT")
    write(Path(sys.argv[1]))

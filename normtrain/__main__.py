"""``python -m normtrain …``: the same commands as ``normtrain …``."""

from normtrain.cli import main

if __name__ == "__main__":
    main()

"""Train, resume, evaluate and compare transformers whose first-class axis is the normalizer.

Importing this package imports neither torch nor Lightning; its rooms do, when they are asked for.
"""

from normtrain._version import __version__

__all__ = ["__version__"]

"""Models in the formats of others: Hugging Face's Llama, Qwen3 and GPT-2; and our own export.

Files are written and read directly: `transformers` is not needed, and nothing in a folder is run.
"""

from normtrain.hf.model_folder import FORMATS, read_folder, write_folder
from normtrain.hf.pretrained import Loaded, Pretrained, load_into

__all__ = ["FORMATS", "Loaded", "Pretrained", "load_into", "read_folder", "write_folder"]

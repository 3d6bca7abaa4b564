"""Translation: data, module, metrics, decoding, evaluation."""

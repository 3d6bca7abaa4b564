"""Language modelling: data, module, metrics, sampling, evaluation."""

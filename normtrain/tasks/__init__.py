"""LightningModules: what a run trains and how it is judged."""

"""Replace norms in a Lightning project, and record them in its checkpoints."""

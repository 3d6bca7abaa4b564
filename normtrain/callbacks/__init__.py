"""Lightning callbacks, each with one duty."""

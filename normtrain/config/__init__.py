"""Load, override, check and explain recipes."""

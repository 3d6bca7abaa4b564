"""Programs that make data which the package ships; not part of the installed package."""

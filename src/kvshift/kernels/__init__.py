"""The same mathematics, fast: one file an operation, its dispatch in one place."""

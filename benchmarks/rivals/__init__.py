"""Other tools over the same rows and the same mock model. Each runs in an environment of its own."""

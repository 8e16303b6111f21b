"""The measures: each runs its processes and returns figures."""

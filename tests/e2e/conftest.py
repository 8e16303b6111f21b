"""A whole stack with scripted models, as the integration tests use it, for tests that click through its pages."""

from tests.integration.conftest import dashboard, home, ledger, running

__all__ = ["dashboard", "home", "ledger", "running"]  # fixtures

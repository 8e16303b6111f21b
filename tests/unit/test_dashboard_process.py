"""What the dashboard's process is given: where the views are, and no secret but their role's password."""

from infra import dashboard, postgres
from infra.orphans import MARK
from infra.settings import Settings

URL = "postgresql+psycopg://headrace_reader@127.0.0.1:5432/headrace"
NOT_FOR_IT = (
    "PREFECT_API_AUTH_STRING",
    "VLLM_API_KEY",
    "PHOENIX_API_KEY",
    "DATABASE_URL",
    "HEADRACE_DATABASE_URL",
    "PGPASSWORD",
    "MLFLOW_TRACKING_URI",
    "AWS_SESSION_TOKEN",
)


def test_it_gets_the_readers_password_file_and_nothing_of_the_stacks_secrets(defaults: Settings) -> None:
    settings = defaults.model_copy(update={"reader_url": URL})
    needed = {"PATH": "/usr/bin", "HOME": "/home/me", "LC_ALL": "C.UTF-8", "PGSSLMODE": "require", MARK: "/run"}
    given = {**needed, **dict.fromkeys(NOT_FOR_IT, "of no use to it"), "PGPASSFILE": str(postgres.passfile(settings))}
    got = dashboard.environment(settings, given)
    assert got["PGPASSFILE"] == str(postgres.reader_passfile(settings))
    assert got["HEADRACE_READER_URL"] == URL
    assert needed.items() <= got.items()
    assert "of no use to it" not in got.values()


def test_a_password_file_of_the_users_own_is_handed_on(defaults: Settings) -> None:
    settings = defaults.model_copy(update={"reader_url": URL})
    assert dashboard.environment(settings, {"PGPASSFILE": "/home/me/.pgpass"})["PGPASSFILE"] == "/home/me/.pgpass"
    assert "PGPASSFILE" not in dashboard.environment(settings, {})

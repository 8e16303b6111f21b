"""S2: the stack does not start with a door open: off loopback without proxy and TLS, or with a secret that is none."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from domain.doors import Doors, is_loopback, objections, reached_at, weakness
from infra import credentials, doors, stack
from infra.doors import DoorRefused
from infra.settings import Settings

STRONG = "a1" + "0123456789abcdef" * 3
LOCAL = Doors("127.0.0.1", None, None, secrets={}, logins={})
ELSEWHERE = {"host": "192.0.2.7", "public_url": "https://headrace.example", "tls_proxy": "192.0.2.1"}


def of(**changed: Any) -> list[str]:
    """The settings objected to."""
    return [objection.setting for objection in objections(replace(LOCAL, **changed))]


def elsewhere(**changed: Any) -> list[str]:
    """The same for a stack off loopback whose proxy is well configured but for what is changed."""
    return of(**{"host": "192.0.2.7", "public_url": "https://headrace.example", "proxy": "192.0.2.1"} | changed)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_proxy(host: str) -> None:
    assert is_loopback(host)
    assert of(host=host) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "169.254.1.1"])  # noqa: S104
def test_elsewhere_needs_tls_and_a_proxy(host: str) -> None:
    assert of(host=host) == ["HEADRACE_HOST", "HEADRACE_TLS_PROXY"]
    assert elsewhere(host=host) == []


@pytest.mark.parametrize("host", ["", "*", "example.org", "localhost.", "0", "127.1", "127.0.0.1 "])
def test_what_is_no_address_is_refused(host: str) -> None:
    assert elsewhere(host=host) == ["HEADRACE_HOST"]


@pytest.mark.parametrize("url", [None, "", "http://headrace.example", "headrace.example", "https://", "ftp://x"])
def test_a_public_url_without_tls_is_refused(url: str | None) -> None:
    assert elsewhere(public_url=url) == ["HEADRACE_HOST"]


@pytest.mark.parametrize("url", ["https://a.example:444", "https://a.example/x", "https://a.example?x"])
def test_a_public_url_is_scheme_and_host(url: str) -> None:
    assert elsewhere(public_url=url) == ["HEADRACE_PUBLIC_URL"]


@pytest.mark.parametrize("proxy", [None, "", "proxy.example", "0.0.0.0/0", "::/0", "10.0.0.0/8", "192.0.2.1/24"])
def test_a_proxy_is_an_address_or_a_small_network(proxy: str | None) -> None:
    assert elsewhere(proxy=proxy) == ["HEADRACE_TLS_PROXY"]


@pytest.mark.parametrize("proxy", ["192.0.2.1", "192.0.2.0/24", "2001:db8::/64"])
def test_addresses_and_small_networks_are_proxies(proxy: str) -> None:
    assert elsewhere(proxy=proxy) == []


@pytest.mark.parametrize(
    "secret",
    ["admin", "Admin", "password", "admin:admin", "headrace:password1234", "", "EMPTY", "x:", "short", "a" * 40],
)
def test_what_everybody_guesses_is_no_secret_on_loopback_either(secret: str) -> None:
    assert weakness(secret) is not None
    assert of(secrets={"secrets/prefect": [STRONG, secret]}) == ["secrets/prefect"]


def test_a_login_to_somebody_elses_server_may_be_short_but_not_a_default() -> None:
    assert of(logins={"PHOENIX": "k7"}) == []
    assert of(logins={"PREFECT": "admin:admin"}) == ["PREFECT"]
    assert of(logins={"DATABASE_URL": "postgres"}) == ["DATABASE_URL"]


def test_this_machine_reaches_a_service_where_it_listens() -> None:
    assert [reached_at(host) for host in ("127.0.0.1", "0.0.0.0", "::", "192.0.2.7", "2001:db8::7")] == [  # noqa: S104
        "127.0.0.1",
        "127.0.0.1",
        "127.0.0.1",
        "192.0.2.7",
        "[2001:db8::7]",
    ]


def test_no_objection_names_a_secret() -> None:
    for secret in ("hunter2hunter", "admin"):
        found = objections(Doors("127.0.0.1", None, None, {"a": [secret]}, {"b": "admin"}))
        assert not any(secret in f"{o.message}{o.fix}" for o in found)


@pytest.fixture
def settings(defaults: Settings, tmp_path: Path) -> Iterator[Settings]:
    """A home of its own, in which nothing is left running should something have started."""
    own = defaults.model_copy(update={"home": tmp_path})
    yield own
    if (tmp_path / "run").exists():
        stack.down(own)


def test_generated_secrets_are_good_enough(settings: Settings) -> None:
    credentials.prefect_auth(settings)
    credentials.phoenix_key(settings)
    doors.check(settings, ("engine-cheap",))


@pytest.mark.parametrize("name", ["prefect-password", "phoenix-admin-password", "webhook-own", "notify-own"])
def test_a_file_with_a_default_in_it_is_refused(settings: Settings, name: str) -> None:
    credentials.write(credentials.folder(settings) / name, f"{STRONG}\npassword1234\n")
    with pytest.raises(DoorRefused, match=f"secrets/{name}") as caught:
        doors.check(settings, ())
    assert name in caught.value.fix


def test_a_model_key_matters_while_it_closes_engines_of_ours(settings: Settings) -> None:
    given = settings.model_copy(update={"model_api_key": SecretStr("EMPTY")})
    doors.check(given, ("postgres",))
    with pytest.raises(DoorRefused, match="VLLM_API_KEY"):
        doors.check(given, ("engine-cheap",))


def test_a_default_password_of_a_given_database_is_refused(settings: Settings) -> None:
    url = "postgresql+psycopg://postgres:{}@db.example/ledger"
    doors.check(settings.model_copy(update={"database_url": url.format("k8Jd02lq")}), ())
    with pytest.raises(DoorRefused, match="DATABASE_URL"):
        doors.check(settings.model_copy(update={"database_url": url.format("postgres")}), ())


@pytest.mark.parametrize("name", doors.LOGINS)
def test_a_stack_of_servers_elsewhere_refuses_default_logins_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As in a container, where nothing is ours to start."""
    monkeypatch.setenv(name, "admin:admin")
    with pytest.raises(DoorRefused, match=name):
        stack.up(settings.model_copy(update={"embedded": False}), report=_none)


@pytest.mark.parametrize("missing", ["public_url", "tls_proxy"])
def test_the_stack_starts_nothing_off_loopback_without_a_proxy(settings: Settings, missing: str) -> None:
    given = settings.model_copy(update=ELSEWHERE | {missing: None})
    with pytest.raises(DoorRefused, match=re.escape("192.0.2.7 can be reached from elsewhere")):
        stack.up(given, only=("postgres",), report=_none)
    assert not (settings.home / "run").exists()


def test_the_stack_starts_nothing_at_an_address_that_is_none(settings: Settings) -> None:
    with pytest.raises(DoorRefused, match=r"HEADRACE_HOST: 'example\.org' is no IP address"):
        stack.up(settings.model_copy(update=ELSEWHERE | {"host": "example.org"}), only=("postgres",), report=_none)


def test_what_has_no_login_stays_on_loopback(settings: Settings) -> None:
    given = settings.model_copy(update=ELSEWHERE)
    doors.check(given, ())
    assert {name: doors.listens_on(given, name) for name in ("prefect", "phoenix", "webhooks")} == dict.fromkeys(
        ("prefect", "phoenix", "webhooks"), "192.0.2.7"
    )
    assert {doors.listens_on(given, name) for name in ("mlflow", "dashboard", "postgres", "worker")} == {"127.0.0.1"}
    assert doors.origin(given, "prefect", 4200) == "http://192.0.2.7:4200"
    assert doors.public_origin(given, "prefect", 4200) == "https://headrace.example:4200"
    assert doors.public_origin(given, "mlflow", 5000) == "http://127.0.0.1:5000"
    assert doors.behind_proxy(given) == {"FORWARDED_ALLOW_IPS": "192.0.2.1"}


_none: Callable[[object], None] = lambda _state: None  # noqa: E731

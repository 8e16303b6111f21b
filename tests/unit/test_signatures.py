"""Who is believed: each scheme's proof, what is wrong with it one thing at a time, and secrets that change."""

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from domain.errors import InputError
from domain.triggers import Scheme
from infra import credentials
from infra.settings import Settings
from infra.signatures import MOST_SECRETS, NotBelieved, new_secret, same, secrets_file, secrets_of, sign, verify

BODY = b'{"test": 2432232314}'
ID = "msg_1"
SIGNED = (Scheme.STANDARD, Scheme.MLFLOW)
NAMES = {
    Scheme.STANDARD: ("webhook-id", "webhook-timestamp", "webhook-signature"),
    Scheme.MLFLOW: ("x-mlflow-delivery-id", "x-mlflow-timestamp", "x-mlflow-signature"),
}
PROOF = {
    Scheme.STANDARD: "webhook-signature",
    Scheme.MLFLOW: "x-mlflow-signature",
    Scheme.GITHUB: "x-hub-signature-256",
    Scheme.HUGGINGFACE: "x-webhook-secret",
    Scheme.LAKEFS: "authorization",
    Scheme.S3: "authorization",
}


def believed(
    scheme: Scheme, headers: Mapping[str, str], *secrets: str, body: bytes = BODY, now: float | None = None
) -> bool:
    try:
        verify(scheme, list(headers.items()), body, secrets, now=time.time() if now is None else now)
    except NotBelieved:
        return False
    return True


def signed(scheme: Scheme, secret: str, *, body: bytes = BODY, at: float | None = None) -> dict[str, str]:
    return sign(scheme, secret, body, delivery_id=ID, now=time.time() if at is None else at, event="push")


@pytest.fixture
def secret() -> str:
    return new_secret(Scheme.STANDARD)


@pytest.mark.parametrize("scheme", Scheme)
def test_what_we_sign_is_believed_and_nothing_else(scheme: Scheme) -> None:
    secret, other = new_secret(scheme), new_secret(scheme)
    headers = signed(scheme, secret)
    proof = PROOF[scheme]
    assert believed(scheme, headers, secret)
    assert believed(scheme, headers, other, secret), "the older of two"
    assert believed(scheme, headers, secret, other), "the newer of two"
    assert not believed(scheme, headers, other)
    assert not believed(scheme, headers), "no secret, nobody"
    assert not believed(scheme, {}, secret)
    assert not believed(scheme, {name: value for name, value in headers.items() if name != proof}, secret)
    for wrong in (
        "",
        "x",
        headers[proof][:-1],
        headers[proof][:-6] + "000000",
        headers[proof][::-1],
        "é",
        "\xff" * 64,
        ",",
    ):
        assert not believed(scheme, {**headers, proof: wrong}, secret), wrong
    if scheme not in (Scheme.HUGGINGFACE, Scheme.LAKEFS, Scheme.S3):
        assert not believed(scheme, headers, secret, body=BODY + b" ")


@pytest.mark.parametrize("scheme", Scheme)
def test_a_header_given_twice_is_refused(scheme: Scheme) -> None:
    secret = new_secret(scheme)
    headers = list(signed(scheme, secret).items())
    proof = next(item for item in headers if item[0] == PROOF[scheme])
    with pytest.raises(NotBelieved, match="twice"):
        verify(scheme, [*headers, proof], BODY, [secret], now=time.time())


# The cases of the Standard Webhooks library's own tests, against ours.


@pytest.mark.parametrize("missing", NAMES[Scheme.STANDARD])
def test_standard_missing_id_timestamp_or_signature(secret: str, missing: str) -> None:
    headers = signed(Scheme.STANDARD, secret)
    del headers[missing]
    assert not believed(Scheme.STANDARD, headers, secret)


@pytest.mark.parametrize("stamp", ["hello", "", "nan", "inf", "-1", "1e9", "1614265330.5", "９" * 10, "9" * 400])
@pytest.mark.parametrize("scheme", SIGNED)
def test_standard_invalid_timestamp(secret: str, scheme: Scheme, stamp: str) -> None:
    headers = {**signed(scheme, secret), NAMES[scheme][1]: stamp}
    assert not believed(scheme, headers, secret)


def test_standard_invalid_signature(secret: str) -> None:
    headers = signed(Scheme.STANDARD, secret)
    wrong = "v1," + base64.b64encode(bytes(32)).decode()
    assert not believed(Scheme.STANDARD, {**headers, "webhook-signature": wrong}, secret)


def test_standard_valid_signature_gives_the_id(secret: str) -> None:
    found = verify(Scheme.STANDARD, list(signed(Scheme.STANDARD, secret).items()), BODY, [secret], now=time.time())
    assert found.delivery_id == ID


def test_standard_unbranded_names_only(secret: str) -> None:
    branded = {name.replace("webhook-", "svix-"): value for name, value in signed(Scheme.STANDARD, secret).items()}
    assert not believed(Scheme.STANDARD, branded, secret)


@pytest.mark.parametrize("scheme", SIGNED)
@pytest.mark.parametrize(("age", "good"), [(0, True), (298, True), (-298, True), (302, False), (-302, False)])
def test_standard_old_and_new_timestamps(scheme: Scheme, age: int, good: bool) -> None:
    secret = new_secret(scheme)
    assert believed(scheme, signed(scheme, secret, at=time.time() - age), secret) is good


@pytest.mark.parametrize("scheme", SIGNED)
@pytest.mark.parametrize(("age", "good"), [(299, True), (-299, True), (301, False), (-301, False)])
def test_the_tolerance_by_our_own_clock(scheme: Scheme, age: int, good: bool) -> None:
    secret, now = new_secret(scheme), float(int(time.time()))
    # The message is made now, so that the library's look at the machine's clock does not matter.
    assert believed(scheme, signed(scheme, secret, at=now), secret, now=now + age) is good


def test_standard_several_signatures(secret: str) -> None:
    headers = signed(Scheme.STANDARD, secret)
    wrong = base64.b64encode(bytes(32)).decode()
    several = " ".join([f"v1,{wrong}", f"v2,{wrong}", headers["webhook-signature"], f"v1,{wrong}"])
    assert believed(Scheme.STANDARD, {**headers, "webhook-signature": several}, secret)
    assert not believed(Scheme.STANDARD, {**headers, "webhook-signature": f"v1,{wrong} v2,{wrong}"}, secret)
    other_version = headers["webhook-signature"].replace("v1,", "v2,")
    assert not believed(Scheme.STANDARD, {**headers, "webhook-signature": other_version}, secret)


def test_standard_secret_with_and_without_prefix(secret: str) -> None:
    headers = signed(Scheme.STANDARD, secret)
    assert believed(Scheme.STANDARD, headers, secret.removeprefix("whsec_"))
    assert believed(Scheme.STANDARD, headers, secret.rstrip("=")), "unpadded"


def test_standard_signing_by_hand(secret: str) -> None:
    headers = signed(Scheme.STANDARD, secret, at=1614265330)
    key = base64.b64decode(secret.removeprefix("whsec_"))
    by_hand = hmac.new(key, f"{ID}.1614265330.".encode() + BODY, hashlib.sha256).digest()
    assert headers["webhook-signature"] == "v1," + base64.b64encode(by_hand).decode()


# What the library raises and does not declare, and what it does not look at.


@pytest.mark.parametrize("scheme", SIGNED)
@pytest.mark.parametrize("signature", ["abc", "v1", "v1,a,b", "v1,é", "v1,=", "v1,a", " ", "v1,AAAA ", "\x80\x81"])
def test_malformed_signatures_are_not_believed(scheme: Scheme, signature: str) -> None:
    secret = new_secret(scheme)
    assert not believed(scheme, {**signed(scheme, secret), NAMES[scheme][2]: signature}, secret)


@pytest.mark.parametrize("scheme", SIGNED)
def test_a_body_that_is_not_utf8_is_not_believed(scheme: Scheme) -> None:
    secret = new_secret(scheme)
    assert not believed(scheme, signed(scheme, secret), secret, body=b"\xff\xfe")


@pytest.mark.parametrize("bad", ["whsec_", "whsec_é", "x", "whsec_=====", "*"])
def test_a_secret_that_is_none_believes_nobody_and_spoils_nothing(secret: str, bad: str) -> None:
    headers = signed(Scheme.STANDARD, secret)
    assert not believed(Scheme.STANDARD, headers, bad)
    assert believed(Scheme.STANDARD, headers, bad, secret)


@pytest.mark.parametrize("scheme", SIGNED)
def test_another_id_or_time_under_the_same_signature(scheme: Scheme) -> None:
    secret = new_secret(scheme)
    headers = signed(scheme, secret)
    delivery, stamp, _ = NAMES[scheme]
    assert not believed(scheme, {**headers, delivery: "msg_2"}, secret)
    assert not believed(scheme, {**headers, stamp: str(int(headers[stamp]) - 1)}, secret)


@pytest.mark.parametrize("scheme", [Scheme.STANDARD, Scheme.MLFLOW, Scheme.GITHUB])
def test_the_same_json_written_otherwise(scheme: Scheme) -> None:
    secret = new_secret(scheme)
    again = json.dumps(json.loads(BODY), separators=(",", ":")).encode()
    assert again != BODY
    assert not believed(scheme, signed(scheme, secret), secret, body=again)


def test_mlflow_keys_are_not_decoded(secret: str) -> None:
    headers = signed(Scheme.MLFLOW, secret)
    signed_otherwise = Webhook(secret).sign(ID, datetime.fromtimestamp(time.time(), UTC), BODY.decode())
    assert believed(Scheme.MLFLOW, headers, secret)
    assert not believed(Scheme.MLFLOW, {**headers, "x-mlflow-signature": signed_otherwise}, secret)


def test_bearer_and_bare_tokens() -> None:
    for given in ("Bearer T", "bearer T", "Bearer  T", "T"):
        assert believed(Scheme.S3, {"authorization": given}, "T"), given
    for given in ("Basic T", "Bearer", "Bearer ", "t", "Bearer T T", "BearerT"):
        assert not believed(Scheme.S3, {"authorization": given}, "T"), given


def ids(scheme: Scheme, body: bytes, now: float) -> str:
    secret = new_secret(scheme)
    headers = sign(scheme, secret, body, delivery_id=ID, now=now, event="push")
    return verify(scheme, list(headers.items()), body, [secret], now=now).delivery_id


def test_ids_of_schemes_that_have_none() -> None:
    now = 1_800_000_000.0
    for scheme in (Scheme.LAKEFS, Scheme.S3):
        assert ids(scheme, b"1", now) == ids(scheme, b"1", now + 7200) != ids(scheme, b"2", now)
    hub = Scheme.HUGGINGFACE
    assert ids(hub, b"1", now) == ids(hub, b"1", now + 60) != ids(hub, b"2", now)
    assert ids(hub, b"1", now) != ids(hub, b"1", now + 3600), "a ref that went to and fro says the same again"


@pytest.mark.parametrize("delivery", ["", "é", "\x01", "a\tb"])
def test_an_id_that_is_no_text_is_no_message(delivery: str) -> None:
    secret = new_secret(Scheme.GITHUB)
    headers = {**signed(Scheme.GITHUB, secret), "x-github-delivery": delivery}
    with pytest.raises(InputError):
        verify(Scheme.GITHUB, list(headers.items()), BODY, [secret], now=time.time())


def test_comparing() -> None:
    assert same(b"secret", b"secret")
    assert not same(b"secret", b"secreT")
    assert not same(b"", b"secret")


def test_secrets_are_read_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(home=tmp_path)
    assert secrets_of(settings, "own") == ()
    old, new = new_secret(Scheme.GITHUB), new_secret(Scheme.GITHUB)
    credentials.write(secrets_file(settings, "own"), old + "\n")
    assert secrets_of(settings, "own") == (old,)
    credentials.write(secrets_file(settings, "own"), f"{new}\n\n  {old}\n")
    assert secrets_of(settings, "own") == (new, old)
    assert len(secrets_of(settings, "own")) <= MOST_SECRETS
    assert {old, new} <= set(credentials.known(settings)), "cleaned out of log excerpts, each"
    assert secrets_file(settings, "own").stat().st_mode & 0o077 == 0
    with caplog.at_level(logging.ERROR):
        secrets_file(settings, "own").write_bytes(b"\xff")
        assert secrets_of(settings, "own") == ()
    assert "cannot be read" in caplog.text

"""The fake model, over real HTTP: what it answers, what it does wrong, and what it says it did."""

import asyncio
import json
import math
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import ValidationError

from infra.llm.scripted import Fault, Rule, Script, ScriptedServer
from infra.llm.scripted_faults import BODIES, WIRES

LABELS = ["card", "transfer", "top_up", "fees"]
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"topic": {"enum": LABELS}}, "required": ["topic"]}
SYSTEM = {"role": "system", "content": "Name the topic of the message. " * 12}
RULES = (Rule(pattern="card", label="card"), Rule(pattern="transfer|sent", label="transfer"))
ROOT = Path(__file__).parents[2]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def body(*messages: dict[str, str], schema: dict[str, Any] = SCHEMA, **more: object) -> dict[str, object]:
    wanted = {"type": "json_schema", "json_schema": {"name": "Answer", "schema": schema}}
    return {"model": "scripted", "messages": [SYSTEM, *messages], "response_format": wanted} | more


async def post(url: str, payload: dict[str, object], **headers: str) -> tuple[int, dict[str, Any]]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client,
        client.post(f"{url}/chat/completions", json=payload, headers=headers) as answer,
    ):
        return answer.status, await answer.json()


def ask(url: str, payload: dict[str, object], **headers: str) -> tuple[int, dict[str, Any]]:
    return asyncio.run(post(url, payload, **headers))


def ask_all(url: str, rows: list[str], **more: Any) -> list[dict[str, Any]]:
    async def run() -> list[tuple[int, dict[str, Any]]]:
        return await asyncio.gather(*(post(url, body(user(row), **more)) for row in rows))

    return [reply for _, reply in asyncio.run(run())]


async def fetch(url: str, *, method: str = "GET") -> str:
    async with aiohttp.ClientSession() as client, client.request(method, url) as answer:
        return await answer.text()


def content(reply: dict[str, Any]) -> str:
    return reply["choices"][0]["message"]["content"]


def topic(reply: dict[str, Any]) -> str:
    return json.loads(content(reply))["topic"]


def decisive(reply: dict[str, Any]) -> dict[str, float]:
    tokens = reply["choices"][0]["logprobs"]["content"]
    return {top["token"]: math.exp(top["logprob"]) for top in tokens[3]["top_logprobs"]}


def rows(count: int) -> list[str]:
    return [f"message number {index} about something" for index in range(count)]


# --- answers


def test_a_rule_decides_the_label() -> None:
    with ScriptedServer(Script(rules=RULES)) as server:
        assert topic(ask(server.base_url, body(user("my card is lost")))[1]) == "card"
        assert topic(ask(server.base_url, body(user("I sent money")))[1]) == "transfer"


def test_rows_without_a_rule_get_labels_of_every_kind_and_the_same_ones_again() -> None:
    with ScriptedServer() as first, ScriptedServer() as second:
        labels = [topic(reply) for reply in ask_all(first.base_url, rows(60))]
        assert labels == [topic(reply) for reply in ask_all(second.base_url, rows(60))]
    assert set(labels) == set(LABELS)


def test_two_servers_with_one_script_answer_byte_for_byte_alike() -> None:
    payload = body(user("my card is lost"), logprobs=True, top_logprobs=4)
    with ScriptedServer(Script(rules=RULES)) as first, ScriptedServer(Script(rules=RULES)) as second:
        assert ask(first.base_url, payload) == ask(second.base_url, payload)


def test_another_script_has_another_fingerprint() -> None:
    with ScriptedServer() as first, ScriptedServer(Script(seed=1)) as second:
        replies = [ask(server.base_url, body(user("a")))[1] for server in (first, second)]
    assert replies[0]["system_fingerprint"] != replies[1]["system_fingerprint"]


def test_a_pydantic_schema_with_references_strings_and_booleans_is_followed() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "$defs": {"Topic": {"type": "string", "enum": LABELS}},
        "properties": {
            "reason": {"type": "string"},
            "topic": {"$ref": "#/$defs/Topic"},
            "urgent": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "kind": {"const": "ticket"},
        },
    }
    with ScriptedServer(Script(rules=RULES)) as server:
        _, reply = ask(server.base_url, body(user('the "card"\nis lost'), schema=schema, logprobs=True))
    answer = json.loads(content(reply))
    assert list(answer) == ["reason", "topic", "urgent", "note", "kind"]
    assert (answer["reason"], answer["topic"], answer["kind"]) == ('the "card" is lost', "card", "ticket")
    assert isinstance(answer["urgent"], bool)
    assert "".join(token["token"] for token in reply["choices"][0]["logprobs"]["content"]) == content(reply)


def test_tokens_concatenate_to_the_text_and_the_decisive_one_covers_the_labels() -> None:
    with ScriptedServer(Script(rules=RULES)) as server:
        _, reply = ask(server.base_url, body(user("my card is lost"), logprobs=True, top_logprobs=20))
    tokens = reply["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in tokens] == ['{"', "topic", '":"', "card", '"}']
    assert bytes(tokens[3]["bytes"]) == b"card"
    assert set(decisive(reply)) == set(LABELS)
    assert sum(decisive(reply).values()) == pytest.approx(1.0)
    assert tokens[3]["top_logprobs"][0]["logprob"] == tokens[3]["logprob"]
    assert reply["usage"]["completion_tokens"] == len(tokens)


def test_top_logprobs_are_cut_to_k_and_absent_when_not_asked_for() -> None:
    with ScriptedServer(Script(rules=RULES)) as server:
        _, two = ask(server.base_url, body(user("card"), logprobs=True, top_logprobs=2))
        _, none = ask(server.base_url, body(user("card")))
    assert len(decisive(two)) == 2
    assert none["choices"][0]["logprobs"] is None


def test_labels_cut_into_tokens_keep_their_probability() -> None:
    labels = ["card_lost", "card_blocked", "fees"]
    schema = {"type": "object", "properties": {"topic": {"enum": labels}}}
    payload = body(user("where is it"), schema=schema, logprobs=True, top_logprobs=20)
    rules = (Rule(pattern="where", label="card_lost"),)
    with ScriptedServer(Script(rules=rules)) as whole, ScriptedServer(Script(rules=rules, token_chars=5)) as cut:
        one, many = ask(whole.base_url, payload)[1], ask(cut.base_url, payload)[1]
    pieces = many["choices"][0]["logprobs"]["content"][3:-1]
    assert [piece["token"] for piece in pieces] == ["card_", "lost"]
    assert sum(piece["logprob"] for piece in pieces) == pytest.approx(
        one["choices"][0]["logprobs"]["content"][3]["logprob"]
    )


def test_noise_is_the_share_of_wrong_rows_and_wrong_rows_are_less_sure() -> None:
    rule = (Rule(pattern="message", label="card"),)
    with ScriptedServer(Script(rules=rule, noise=0.25)) as server:
        replies = ask_all(server.base_url, rows(400), logprobs=True, top_logprobs=4)
    right = [max(decisive(reply).values()) for reply in replies if topic(reply) == "card"]
    wrong = [max(decisive(reply).values()) for reply in replies if topic(reply) != "card"]
    assert 0.19 < len(wrong) / 400 < 0.31
    assert sum(right) / len(right) > sum(wrong) / len(wrong) + 0.1


def test_a_bias_multiplies_the_label_probabilities_and_can_change_the_answer() -> None:
    payload = body(user("my card is lost"), logprobs=True, top_logprobs=4)
    with (
        ScriptedServer(Script(rules=RULES)) as fair,
        ScriptedServer(Script(rules=RULES, bias={"fees": 3.0})) as mild,
        ScriptedServer(Script(rules=RULES, bias={"fees": 1e6})) as strong,
    ):
        before, after = (decisive(ask(server.base_url, payload)[1]) for server in (fair, mild))
        assert topic(ask(strong.base_url, payload)[1]) == "fees"
    odds = (after["fees"] / after["card"]) / (before["fees"] / before["card"])
    assert odds == pytest.approx(3.0)


def test_an_answer_longer_than_max_tokens_is_cut_as_vllm_cuts_it() -> None:
    with ScriptedServer(Script(rules=RULES)) as server:
        _, reply = ask(server.base_url, body(user("card"), max_tokens=4))
    assert reply["choices"][0]["finish_reason"] == "length"
    assert content(reply) == '{"topic":"card'


def test_the_shared_head_of_a_prompt_is_cached_after_the_first_row() -> None:
    with ScriptedServer() as server:
        cached = [
            ask(server.base_url, body(user(row)))[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
            for row in rows(2)
        ]
        assert server.calls.cached_tokens == sum(cached)
    assert cached[0] == 0
    assert cached[1] > 0
    assert cached[1] % 16 == 0


# --- the protocol


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "other"}, 404),
        ({"messages": []}, 400),
        ({"stream": True}, 400),
        ({"n": 2}, 400),
        ({"top_logprobs": 21}, 400),
    ],
)
def test_a_request_that_vllm_would_refuse_is_refused_in_its_shape(change: dict[str, object], status: int) -> None:
    with ScriptedServer() as server:
        got, reply = ask(server.base_url, body(user("a")) | change)
        assert (server.calls.refused, server.calls.answered) == (1, 0)
    assert got == status
    assert (reply["error"]["code"], reply["error"]["param"]) == (status, next(iter(change)))


def test_a_key_is_asked_for_under_v1_only() -> None:
    with ScriptedServer(Script(api_key="sesame")) as server:
        assert ask(server.base_url, body(user("a")))[0] == 401
        assert ask(server.base_url, body(user("a")), Authorization="Bearer wrong")[0] == 401
        assert ask(server.base_url, body(user("a")), Authorization="Bearer sesame")[0] == 200
        assert "Unauthorized" in asyncio.run(fetch(f"{server.base_url}/models"))
        assert asyncio.run(fetch(f"{server.root_url}/health")) == ""


def test_a_request_id_comes_back_as_the_completion_id() -> None:
    with ScriptedServer() as server:
        _, reply = ask(server.base_url, body(user("a")), **{"X-Request-Id": "r-7"})
        assert server.log[0].request_id == "r-7"
    assert reply["id"] == "chatcmpl-r-7"


def test_the_models_list_names_the_model() -> None:
    with ScriptedServer(Script(model="small")) as server:
        listed = json.loads(asyncio.run(fetch(f"{server.base_url}/models")))
    assert [card["id"] for card in listed["data"]] == ["small"]


def test_metrics_calls_and_usage_agree() -> None:
    with ScriptedServer() as server:
        replies = ask_all(server.base_url, rows(30))
        report = json.loads(asyncio.run(fetch(f"{server.root_url}/_calls")))
        metrics = asyncio.run(fetch(f"{server.root_url}/metrics"))
        assert server.calls.model_dump() == report
    samples = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    label = '{engine="0",model_name="scripted"'
    for metric, key in (("prompt_tokens", "prompt_tokens"), ("generation_tokens", "completion_tokens")):
        total = sum(reply["usage"][key] for reply in replies)
        assert float(samples[f"vllm:{metric}_total{label}}}"]) == total == report[key]
    assert float(samples[f'vllm:request_success_total{label},finished_reason="stop"}}']) == 30
    assert float(samples[f"vllm:num_requests_running{label}}}"]) == 0
    assert abs(float(samples["process_start_time_seconds"]) - time.time()) < 60
    assert report["rows"] == dict.fromkeys(rows(30), 1)


def test_a_reset_forgets_everything() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="status", first=1),))) as server:
        assert [ask(server.base_url, body(user("a")))[0] for _ in range(2)] == [500, 200]
        asyncio.run(fetch(f"{server.root_url}/_reset", method="POST"))
        assert server.calls.requests == 0
        assert ask(server.base_url, body(user("a")))[0] == 500


def test_a_slow_server_holds_every_call_and_counts_them() -> None:
    with ScriptedServer(Script(latency_s=1.0)) as server:
        ask_all(server.base_url, rows(80))
        assert server.calls.max_in_flight == 80
        assert server.calls.in_flight == 0


def test_calls_beyond_the_slots_wait() -> None:
    with ScriptedServer(Script(latency_s=0.2, max_running=5)) as server:
        started = time.monotonic()
        ask_all(server.base_url, rows(20))
        assert time.monotonic() - started >= 0.8


# --- faults


def test_status_codes_carry_retry_after_and_stop_after_the_first_calls() -> None:
    fault = Fault(kind="status", match="card", status=429, retry_after="2", first=2)

    async def run(url: str) -> list[tuple[int, str | None]]:
        async with aiohttp.ClientSession() as client:
            answers = [await client.post(f"{url}/chat/completions", json=body(user("my card"))) for _ in range(3)]
            return [(answer.status, answer.headers.get("Retry-After")) for answer in answers]

    with ScriptedServer(Script(faults=(fault,))) as server:
        assert asyncio.run(run(server.base_url)) == [(429, "2"), (429, "2"), (200, None)]
        assert ask(server.base_url, body(user("fees")))[0] == 200
        assert server.calls.faults == {"status": 2}
        assert server.calls.answered == 2
        assert all(before.at <= after.at for before, after in pairwise(server.log))


def test_a_share_of_rows_fails_and_always_the_same_ones() -> None:
    script = Script(faults=(Fault(kind="status", status=503, share=0.2),))

    async def run(url: str) -> list[int]:
        return [status for status, _ in await asyncio.gather(*(post(url, body(user(row))) for row in rows(200)))]

    with ScriptedServer(script) as server:
        statuses = asyncio.run(run(server.base_url))
        assert asyncio.run(run(server.base_url)) == statuses
    assert 20 < statuses.count(503) < 60


def test_the_nth_call_alone_can_fail() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="status", calls=(2,)),))) as server:
        assert [ask(server.base_url, body(user("a")))[0] for _ in range(3)] == [200, 500, 200]


def test_a_fault_can_sleep_until_the_server_has_taken_some_calls() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="status", after_calls=2),))) as server:
        assert [ask(server.base_url, body(user(row)))[0] for row in rows(4)] == [200, 200, 500, 500]


def test_a_reask_that_only_quotes_the_row_is_a_call_of_that_row() -> None:
    script = Script(rules=RULES, faults=(Fault(kind="invalid_json", first=2),))
    with ScriptedServer(script) as server:
        turns = [user("my card is lost")]
        texts: list[str] = []
        for _ in range(3):
            texts.append(content(ask(server.base_url, body(*turns))[1]))
            turns += [{"role": "assistant", "content": texts[-1]}, user("Answer in JSON only.")]
        assert server.calls.rows == {"my card is lost": 3}
    for text in texts[:2]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(text)
    assert json.loads(texts[2]) == {"topic": "card"}


def test_a_reask_that_repeats_the_row_in_one_message_is_a_call_of_that_row() -> None:
    with ScriptedServer(Script(rules=RULES, faults=(Fault(kind="off_schema", first=1),))) as server:
        assert json.loads(content(ask(server.base_url, body(user("my card")))[1])) == {"unexpected": True}
        again = user("my card\n\nYour last answer did not fit the schema.")
        assert topic(ask(server.base_url, body(again))[1]) == "card"
        assert server.calls.rows == {"my card": 2}


def test_a_row_that_contains_a_spoiled_rows_words_is_a_row_of_its_own() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="off_schema", match="^my card$"),))) as server:
        ask_all(server.base_url, ["my card"])
        ask_all(server.base_url, ["where is my card please"])
        assert server.calls.rows == {"my card": 1, "where is my card please": 1}


def test_a_row_pattern_finds_the_row_among_demos_and_templates() -> None:
    script = Script(row_pattern=r"TEXT: (.*)", rules=RULES, faults=(Fault(kind="off_schema", match="^sent", first=1),))
    demo = [user("TEXT: my card\nchoose"), {"role": "assistant", "content": '{"topic":"card"}'}]
    with ScriptedServer(script) as server:
        turns = [*demo, user("TEXT: sent it\nchoose card or transfer")]
        first = content(ask(server.base_url, body(*turns))[1])
        turns += [{"role": "assistant", "content": first}, user("Again, please.")]
        assert topic(ask(server.base_url, body(*turns))[1]) == "transfer"
        assert server.calls.rows == {"sent it": 2}


@pytest.mark.parametrize("kind", ["truncated", "whitespace"])
def test_a_cut_answer_says_length_and_is_paid_for(kind: Any) -> None:
    with ScriptedServer(Script(faults=(Fault(kind=kind),))) as server:
        _, reply = ask(server.base_url, body(user("a"), max_tokens=32))
        assert server.calls.completion_tokens == reply["usage"]["completion_tokens"]
        assert server.calls.finished == {"length": 1}
    assert reply["choices"][0]["finish_reason"] == "length"
    if kind == "whitespace":
        assert reply["usage"]["completion_tokens"] == 32
        assert content(reply).strip() == '{"'


@pytest.mark.parametrize("name", sorted({*BODIES, *WIRES, "not_gzip"}))
def test_garbage_never_holds_an_answer_and_the_server_lives_on(name: str) -> None:
    async def run(url: str) -> bytes:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client,
            client.post(f"{url}/chat/completions", json=body(user("bad"))) as answer,
        ):
            return await answer.read()

    with ScriptedServer(Script(faults=(Fault(kind="garbage", garbage=name, match="bad"),))) as server:
        if name in BODIES:
            assert asyncio.run(run(server.base_url)) == BODIES[name]
        else:
            with pytest.raises(aiohttp.ClientError):
                asyncio.run(run(server.base_url))
        assert ask(server.base_url, body(user("good")))[0] == 200
        assert server.calls.answered == 1


def test_the_gzip_bomb_is_small_on_the_wire_and_unpacks_to_its_size() -> None:
    async def run(url: str) -> bytes:
        async with (
            aiohttp.ClientSession(auto_decompress=False) as client,
            client.post(f"{url}/chat/completions", json=body(user("a"))) as answer,
        ):
            assert answer.headers["Content-Encoding"] == "gzip"
            return await answer.read()

    with ScriptedServer(Script(faults=(Fault(kind="garbage", garbage="gzip_bomb", megabytes=64),))) as server:
        packed = asyncio.run(run(server.base_url))
    assert len(packed) < 200_000
    assert len(zlib.decompress(packed, wbits=31)) == 64 * 2**20


@pytest.mark.parametrize(
    "fault",
    [Fault(kind="hang"), Fault(kind="drip", seconds=0.05), Fault(kind="drip", seconds=0.05, part="headers")],
    ids=["hang", "drip", "headers"],
)
def test_a_stalled_call_ends_only_by_the_clients_deadline_and_others_are_served(fault: Fault) -> None:
    stalled = fault.model_copy(update={"match": "slow"})

    async def run(url: str) -> int:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.6)) as client:
            slow = asyncio.create_task(client.post(f"{url}/chat/completions", json=body(user("slow"))))
            status, _ = await post(url, body(user("quick")))
            with pytest.raises(TimeoutError):
                async with await slow as answer:
                    await answer.read()
        return status

    with ScriptedServer(Script(faults=(stalled,))) as server:
        assert asyncio.run(run(server.base_url)) == 200
        wait_until(lambda: server.calls.in_flight == 0)
        assert server.calls.finished == {"stop": 1, "abort": 1}


def test_a_drip_that_is_waited_for_is_the_whole_answer() -> None:
    with ScriptedServer(Script(rules=RULES, faults=(Fault(kind="drip", seconds=0.0005),))) as server:
        assert topic(ask(server.base_url, body(user("my card")))[1]) == "card"
        wait_until(lambda: server.calls.answered == 1)  # it counts once the client has the last byte


def test_latency_delays_the_rows_it_matches() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="latency", match="slow", seconds=0.4),))) as server:
        started = time.monotonic()
        assert ask(server.base_url, body(user("slow")))[0] == 200
        assert time.monotonic() - started >= 0.4


def test_a_reset_connection_is_an_error_and_the_next_call_is_served() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="reset", first=1),))) as server:
        with pytest.raises(aiohttp.ClientOSError):
            ask(server.base_url, body(user("a")))
        assert ask(server.base_url, body(user("a")))[0] == 200


def test_a_poison_row_takes_a_server_in_this_process_off_the_air() -> None:
    with ScriptedServer(Script(faults=(Fault(kind="die", match="row 137"),))) as server:
        assert ask(server.base_url, body(user("row 1")))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            ask(server.base_url, body(user("row 137")))
        wait_until(lambda: not reachable(server.base_url))


def test_a_killed_server_drops_its_calls_and_another_can_take_its_port() -> None:
    async def run(server: ScriptedServer) -> None:
        call = asyncio.create_task(post(server.base_url, body(user("a"))))
        await asyncio.to_thread(wait_until, lambda: server.calls.in_flight == 1)
        await asyncio.to_thread(server.kill)
        with pytest.raises(aiohttp.ClientError):
            await call

    with ScriptedServer(Script(latency_s=60)) as server:
        asyncio.run(run(server))
    with ScriptedServer(port=server.port) as successor:
        assert ask(successor.base_url, body(user("a")))[0] == 200


def test_a_port_in_use_is_an_error_at_the_door() -> None:
    with ScriptedServer() as server, pytest.raises(OSError, match="in use"), ScriptedServer(port=server.port):
        pass


def test_the_server_is_an_async_context_manager_too() -> None:
    async def run() -> int:
        async with ScriptedServer() as server:
            return (await post(server.base_url, body(user("a"))))[0]

    assert asyncio.run(run()) == 200


def test_rows_can_be_left_unremembered() -> None:
    with ScriptedServer(Script(keep_rows=False)) as server:
        ask_all(server.base_url, rows(10))
        assert (server.calls.requests, server.calls.rows, server.log) == (10, {}, [])


# --- the script and the command


def test_a_script_survives_json() -> None:
    script = Script(rules=RULES, bias={"fees": 2.0}, faults=(Fault(kind="garbage", garbage="nan", calls=(1, 3)),))
    assert Script.model_validate_json(script.model_dump_json()) == script


@pytest.mark.parametrize(
    "text",
    [
        '{"nois": 0.1}',
        '{"rules": [{"pattern": "(", "label": "a"}]}',
        '{"faults": [{"kind": "explode"}]}',
        '{"faults": [{"kind": "garbage", "garbage": "unheard of"}]}',
        '{"bias": {"a": 0}}',
    ],
)
def test_a_script_with_a_mistake_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Script.model_validate_json(text)


def test_a_script_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Script().noise = 0.5  # pyright: ignore[reportAttributeAccessIssue]  # frozen is what this test is about


def reachable(url: str) -> bool:
    try:
        return ask(url, body(user("still there?")))[0] == 200
    except aiohttp.ClientError:
        return False


def wait_until(holds: Any, *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


@contextmanager
def command(script: Path) -> Generator[tuple[subprocess.Popen[str], str]]:
    arguments = [sys.executable, "-m", "infra.llm.scripted", "--port", "0", "--script", str(script)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline())
            assert said["pid"] == process.pid
            yield process, said["base_url"]
        finally:
            process.kill()


def test_the_command_says_its_port_serves_the_script_and_dies_of_poison(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text(Script(rules=RULES, faults=(Fault(kind="die", match="row 137"),)).model_dump_json())
    with command(path) as (process, url):
        assert topic(ask(url, body(user("my card")))[1]) == "card"
        with pytest.raises(aiohttp.ClientError):
            ask(url, body(user("row 137")))
        assert process.wait(timeout=15) == 137


def test_the_command_can_be_killed(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text("{}")
    with command(path) as (process, url):
        assert reachable(url)
        process.kill()
        assert process.wait(timeout=15) == -signal.SIGKILL
        assert not reachable(url)

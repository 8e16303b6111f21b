"""The Ray job's own part: what it makes of requests, and the answers it writes, without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from domain.requests import Request
from infra.llm import ray_job
from infra.llm.ray_job import Refused
from infra.llm.wire import read_completion

MESSAGES = [{"role": "user", "content": "q"}]
SCHEMA = {"properties": {"topic": {"enum": ["card", "loan"]}}, "type": "object"}
BODY: dict[str, Any] = {
    "model": "m",
    "messages": MESSAGES,
    "temperature": 0.0,
    "seed": 7,
    "max_tokens": 24,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
    "logprobs": True,
    "top_logprobs": 2,
}
END = 9


def params(body: dict[str, Any], *, prompt_tokens: int = 10, longest: int | None = 100, **defaults: Any) -> Any:
    return ray_job.sampling_params(body, defaults, prompt_tokens=prompt_tokens, longest=longest)


def engine_row(tokens: list[int], **changes: Any) -> dict[str, Any]:
    """A row as Ray's vLLM stage hands it on."""
    ask = {"model": "m", "logprobs": 2, "max_tokens": 4, "longest": 100, "ends": [END], "fingerprint": "f"}
    words = {1: '{"topic":"', 2: "card", 3: '"}', END: "<end>"}
    listed = [
        {
            token: {"decoded_token": words[token], "logprob": -0.25, "rank": 1},
            4: {"decoded_token": "loan", "logprob": float("-inf"), "rank": 2},
            5: {"decoded_token": "cash", "logprob": -3.0, "rank": 3},
        }
        for token in tokens
    ]
    return {
        "request_hash": "h",
        "shard": "s",
        "generated_text": '{"topic":"card"}',
        "generated_tokens": tokens,
        "num_input_tokens": 10,
        "logprobs": listed,
        "time_taken_llm": 1.5,
        "ask": json.dumps(ask | changes),
        "__inference_error__": "",
    }


def test_a_request_becomes_the_sampling_parameters_that_vllms_server_would_make() -> None:
    assert params(BODY) == {
        **ray_job.SAMPLING,
        "temperature": 0.0,
        "seed": 7,
        "max_tokens": 24,
        "logprobs": 2,
        "structured_outputs": {"json": json.dumps(SCHEMA)},
    }


def test_what_a_request_leaves_open_comes_from_the_model_and_then_from_vllm() -> None:
    bare = params({"model": "m", "messages": MESSAGES}, top_k=64, temperature=0.6, bos_token_id=1)
    assert (bare["top_k"], bare["temperature"], bare["top_p"], bare["logprobs"]) == (64, 0.6, 1.0, None)
    assert bare["max_tokens"] == 90
    assert bare["structured_outputs"] is None
    assert params({**BODY, "temperature": 0.1, "stop": "\n"}, temperature=0.6)["temperature"] == 0.1
    assert params({**BODY, "stop": "\n"})["stop"] == ["\n"]


def test_the_fields_of_a_schema_keep_their_order() -> None:
    schema = {"properties": {"z": {}, "a": {}}}
    made = ray_job.structured_outputs({"type": "json_schema", "json_schema": {"schema": schema}})
    assert made is not None
    assert list(json.loads(made["json"])["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tools": []}, "does not know tools"),
        ({"n": 2}, "does not know n"),
        ({"response_format": {"type": "grammar"}}, "does not know the response format 'grammar'"),
        ({"max_tokens": 91}, "the prompt has 10 tokens and asks for 91; the model takes 100"),
    ],
)
def test_what_this_engine_cannot_do_is_refused_and_not_left_out(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        params({**BODY, **change})


def test_a_prompt_that_just_fits_is_taken() -> None:
    assert params({**BODY, "max_tokens": 90})["max_tokens"] == 90


def test_an_answer_reads_like_one_that_came_over_http() -> None:
    row = ray_job.reply(engine_row([1, 2, 3, END]))
    assert (row["error"], row["refused"], row["seconds"]) == ("", False, 1.5)
    completion = read_completion(Request.of(BODY, None), row["body"].encode())
    assert (completion.text, completion.finish_reason) == ('{"topic":"card"}', "stop")
    assert (completion.usage.prompt, completion.usage.completion) == (10, 4)
    assert completion.fingerprint == "f"
    assert set(completion.label_logprobs["topic"]) == {"card", "loan"}
    (place, *_) = json.loads(row["body"])["choices"][0]["logprobs"]["content"]
    assert [other["token"] for other in place["top_logprobs"]] == ['{"topic":"', "loan"]
    assert place["top_logprobs"][1]["logprob"] == ray_job.LOWEST_LOGPROB


def test_log_probabilities_are_left_out_unless_asked_for() -> None:
    body = ray_job.chat_completion(engine_row([1, END], logprobs=None))
    assert body["choices"][0]["logprobs"] is None


@pytest.mark.parametrize(
    ("tokens", "longest", "reason"),
    [
        ([1, 2, 3, END], 100, "stop"),  # the end is the last token allowed
        ([1, 2, 3, 1], 100, "length"),
        ([1, 2], 12, "length"),  # the context is full
        ([1, 2], None, "stop"),  # a stop string
    ],
)
def test_the_reason_why_an_answer_ended(tokens: list[int], longest: int | None, reason: str) -> None:
    ask = {"ends": [END], "max_tokens": 4, "longest": longest}
    assert ray_job.finish_reason(tokens, 10, ask) == reason


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        ("VLLMValidationError: Grammar error", True),
        ("Refused: the prompt is too long", True),
        ("RuntimeError: out of memory", False),
        ("OSError: ValueError: x", False),
    ],
)
def test_a_failed_row_says_whether_its_request_is_to_blame(error: str, refused: bool) -> None:
    row = ray_job.reply({"request_hash": "h", "shard": "s", "refused": None, "__inference_error__": error})
    assert (row["refused"], row["body"]) == (refused, "")
    assert row["error"] == error.removeprefix("Refused: ")


def test_a_row_that_is_a_reply_already_stays_as_it_is() -> None:
    row = ray_job.reply(engine_row([1, END]))
    assert ray_job.reply(row) == row


def test_names_of_the_command_line_are_taken_too_and_values_stay() -> None:
    given = {"--max-model-len": 2048, "enforce_eager": True}
    assert ray_job.engine_arguments(given) == {"max_model_len": 2048, "enforce_eager": True}


def test_a_reply_shard_is_complete_or_not_there(tmp_path: Path) -> None:
    uri = (tmp_path / "replies" / "one.parquet").as_uri()
    (tmp_path / "replies").mkdir()
    assert not ray_job.exists(uri)
    ray_job.write_table(uri, [ray_job.reply(engine_row([1, END]))])
    assert ray_job.exists(uri)
    assert [path.name for path in (tmp_path / "replies").iterdir()] == ["one.parquet"]


def test_the_job_needs_nothing_of_ours() -> None:
    text = Path(ray_job.__file__).read_text()
    assert "from infra" not in text
    assert "from domain" not in text

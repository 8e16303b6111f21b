"""The Ray job: request shards in, reply shards out, through Ray Data's vLLM stage. `python ray_job.py SPEC_URI`

Runs wherever Ray runs it (Jobs API, KubeRay's RayJob) with the packages of the `ray` group alone: nothing of ours is
imported, and every place is a uri that fsspec reads. A reply is written in the shape of an OpenAI chat completion.
"""

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]

pyarrow: Any = importlib.import_module("pyarrow")
parquet: Any = importlib.import_module("pyarrow.parquet")
Json = dict[str, Any]

SAMPLING: Json = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
} | {"seed": None, "stop": None}
"""What a request may say about sampling, with the defaults of vLLM's own server."""
KNOWN = {*SAMPLING, "model", "messages", "max_tokens", "response_format", "logprobs", "top_logprobs"}
LOWEST_LOGPROB = -9999.0
"""JSON has no minus infinity; vLLM's server writes this instead."""
REFUSALS = ("Refused", "ValueError", "TypeError", "VLLMValidationError", "VLLMClientError", "ValidationError")
"""What the engine raises about a request itself, by class name; anything else may succeed elsewhere."""
TEXT: Any = pyarrow.string()
REPLY: Any = pyarrow.schema(
    {"request_hash": TEXT, "body": TEXT, "seconds": pyarrow.float64(), "error": TEXT, "refused": pyarrow.bool_()}
)
PREPARED: Any = pyarrow.schema(
    [pyarrow.field(name, TEXT) for name in ("shard", "request_hash", "params", "ask", "__inference_error__")]
    + [pyarrow.field("tokenized_prompt", pyarrow.list_(pyarrow.int32()))]
)


class Refused(ValueError):
    """A request that this engine cannot carry out as it stands."""


def sampling_params(body: Json, defaults: Mapping[str, Any], *, prompt_tokens: int, longest: int | None) -> Json:
    """Keyword arguments of vLLM's SamplingParams for a request body; `longest` is the model's context, tokens.

    Raises Refused for a field it does not know, and for a prompt that leaves no room for the answer.
    """
    if unknown := sorted(body.keys() - KNOWN):
        raise Refused(f"the Ray engine does not know {', '.join(unknown)}")
    asked = body.get("max_tokens")
    if longest is not None and prompt_tokens + (asked or 1) > longest:
        raise Refused(f"the prompt has {prompt_tokens} tokens and asks for {asked or 1}; the model takes {longest}")
    given = {name: body[name] for name in SAMPLING if body.get(name) is not None}
    params = {**SAMPLING, **{name: value for name, value in defaults.items() if name in SAMPLING}, **given}
    params["stop"] = [params["stop"]] if isinstance(params["stop"], str) else params["stop"]
    params["max_tokens"] = asked or (longest - prompt_tokens if longest else None)
    params["logprobs"] = (body.get("top_logprobs") or 0) if body.get("logprobs") else None
    params["structured_outputs"] = structured_outputs(body.get("response_format"))
    return params


def structured_outputs(response_format: Json | None) -> Json | None:
    """vLLM's structured outputs for a response_format; the schema as text, in which its order of fields survives."""
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_schema":
        return {"json": json.dumps(response_format["json_schema"]["schema"])}
    if kind == "json_object":
        return {"json_object": True}
    raise Refused(f"the Ray engine does not know the response format {kind!r}")


def chat_completion(row: Mapping[str, Any]) -> Json:
    """One finished row of the engine as the body that an OpenAI-compatible server answers."""
    ask, tokens = json.loads(row["ask"]), [int(token) for token in row["generated_tokens"]]
    prompt = int(row["num_input_tokens"])
    choice: Json = {
        "index": 0,
        "message": {"role": "assistant", "content": row["generated_text"]},
        "logprobs": None,
        "finish_reason": finish_reason(tokens, prompt, ask),
    }
    if ask["logprobs"] is not None and row.get("logprobs") is not None:
        places = zip(tokens, cast(Sequence[Mapping[Any, Json]], row["logprobs"]), strict=False)
        choice["logprobs"] = {"content": [_token(token, listed, ask["logprobs"]) for token, listed in places]}
    usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens)}
    said = {"model": ask["model"], "system_fingerprint": ask["fingerprint"]}
    return {"object": "chat.completion", **said, "choices": [choice], "usage": usage}


def finish_reason(tokens: Sequence[int], prompt_tokens: int, ask: Json) -> str:
    """Why the answer ended, by vLLM's own order of checks: Ray's stage does not pass the reason on."""
    if tokens and tokens[-1] in ask["ends"]:
        return "stop"
    full = ask["longest"] is not None and prompt_tokens + len(tokens) >= ask["longest"]
    return "length" if full or (ask["max_tokens"] is not None and len(tokens) >= ask["max_tokens"]) else "stop"


def _token(token: int, listed: Mapping[Any, Json], top: int) -> Json:
    by_id = {int(key): value for key, value in listed.items()}
    chosen = _logprob(by_id[token])
    # In the engine's order, the token itself first, as many as were asked for: what vLLM's server lists.
    return chosen | {"top_logprobs": [_logprob(other) for other in list(by_id.values())[:top]]}


def _logprob(entry: Json) -> Json:
    return {"token": entry["decoded_token"], "logprob": max(float(entry["logprob"]), LOWEST_LOGPROB)}


def engine_row(row: Mapping[str, Any]) -> Json:
    """What Ray's stage wants of a prepared row."""
    # As Arrow structs the parameters of all rows would be made alike: absent ones null, whole numbers floats, which
    # vLLM refuses. A number as a key, which Arrow does not have, makes Ray keep the rows as the Python objects.
    return {"sampling_params": json.loads(row["params"]), "kept": {0: True}}


def reply(row: Mapping[str, Any]) -> Json:
    """A row as it leaves the engine, good or failed, as one row of a reply shard; a reply stays as it is."""
    if row.get("refused") is not None:  # failed rows alone go past the processor's postprocess
        return dict(row)
    error = str(row.get("__inference_error__") or "")
    place = {"request_hash": row["request_hash"], "shard": row["shard"]}
    if error:
        refused = error.partition(":")[0] in REFUSALS
        return {**place, "body": "", "seconds": 0.0, "error": error.removeprefix("Refused: ")[:300], "refused": refused}
    seconds = float(row["time_taken_llm"])
    return {**place, "body": json.dumps(chat_completion(row)), "seconds": seconds, "error": "", "refused": False}


class Prepare:
    """Turns a shard into rows with the very tokens that vLLM's HTTP server would see."""

    def __init__(self, spec: Json) -> None:
        transformers, self._arguments = importlib.import_module("transformers"), engine_arguments(spec["engine_args"])
        self._spec, folder = spec, _tokenizer_folder(spec["model_source"])
        trust = bool(self._arguments.get("trust_remote_code", False))
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        self._defaults: Json = {}
        if self._arguments.get("generation_config", "auto") == "auto":
            with suppress(OSError):  # few models have none
                self._defaults = transformers.GenerationConfig.from_pretrained(folder).to_diff_dict()
        self._longest = self._arguments.get("max_model_len")
        if self._longest is None:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust).get_text_config()
            self._longest = getattr(config, "max_position_embeddings", None)
        ends = self._defaults.get("eos_token_id", [])
        self._ends = [self._tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        self._grammars: dict[str, Json] = {}
        self._fingerprint = f"vllm-{importlib.import_module('vllm').__version__}-ray"

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> Iterator[Any]:
        """Read and prepare the shards of a batch, one table each."""
        for uri in batch["requests"]:
            with cast(Any, fsspec.open(str(uri), "rb")) as stream:
                rows = cast(list[Json], parquet.read_table(stream).to_pylist())
            prepared = [self._row(row) | {"shard": str(uri), "request_hash": row["request_hash"]} for row in rows]
            yield pyarrow.Table.from_pylist(prepared, PREPARED)

    def _row(self, row: Json) -> Json:
        try:
            body = json.loads(row["body"])
            text = self._tokenizer.apply_chat_template(
                body["messages"], chat_template=self._spec["chat_template"], tokenize=False, add_generation_prompt=True
            )
            # The template writes the special tokens itself; the tokenizer would add a second beginning.
            tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            params = sampling_params(body, self._defaults, prompt_tokens=len(tokens), longest=self._longest)
            params["structured_outputs"] = self._compact(params["structured_outputs"])
        except Exception as error:  # noqa: BLE001 - whatever a single row does must not end the job
            texts = {"params": "{}", "ask": "{}", "__inference_error__": f"Refused: {error}"[:300]}
            return {"tokenized_prompt": [], **texts}
        ask: Json = {
            "model": body["model"],
            "logprobs": params["logprobs"],
            "max_tokens": params["max_tokens"],
            "longest": self._longest,
            "ends": self._ends,
            "fingerprint": self._fingerprint,
        }
        texts = {"params": json.dumps(params), "ask": json.dumps(ask), "__inference_error__": ""}
        return {"tokenized_prompt": tokens, **texts}

    def _compact(self, wanted: Json | None) -> Json | None:
        """The grammar that model servers make of a schema: vLLM 0.29 leaves blanks in it where they leave none."""
        text = (wanted or {}).get("json")
        asked: Json = self._arguments.get("structured_outputs_config") or {}
        if text is None or asked.get("backend") != "xgrammar" or not asked.get("disable_any_whitespace"):
            return wanted
        if text not in self._grammars:
            vllms = importlib.import_module("vllm.v1.structured_output.backend_xgrammar")
            if vllms.has_xgrammar_unsupported_json_features(json.loads(text)):
                return wanted  # refused by vLLM, which says why
            make = importlib.import_module("xgrammar").Grammar.from_json_schema
            self._grammars[text] = {"grammar": str(make(text, any_whitespace=False, separators=(",", ":")))}
        return self._grammars[text]


def engine_arguments(engine_args: Mapping[str, Any]) -> Json:
    """A tier's engine_args under vLLM's Python names; only the dashes of the command line are changed."""
    return {name.lstrip("-").replace("-", "_"): value for name, value in engine_args.items()}


def processor(spec: Json) -> Any:
    """Ray Data's vLLM processor: tokens in, replies out; a row that fails travels on with its error."""
    llm = importlib.import_module("ray.data.llm")
    arguments = engine_arguments(spec["engine_args"])
    if isinstance(arguments.get("structured_outputs_config"), dict):  # the one such argument vLLM does not convert
        structured = importlib.import_module("vllm.config").StructuredOutputsConfig
        arguments["structured_outputs_config"] = structured(**arguments["structured_outputs_config"])
    config = llm.vLLMEngineProcessorConfig(
        model_source=spec["model_source"],
        engine_kwargs=arguments,
        concurrency=spec["replicas"],
        batch_size=spec["batch_rows"],
        accelerator_type=None,
        # One bundle an engine process; without one Ray asks for a GPU each.
        placement_group_config={"bundle_per_worker": spec["bundle"]} if spec["bundle"] else None,
        should_continue_on_error=True,
        log_engine_metrics=False,  # it needs Ray's metrics agent, which not every cluster runs
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    built = llm.build_processor(config, preprocess=engine_row, postprocess=reply)
    # An engine that dies is started again; Ray's own default is for ever, which one poisonous row would use up.
    built.get_stage_by_name("vLLMEngineStage").map_batches_kwargs.update(max_restarts=2, max_task_retries=2)
    return built


def run(spec: Json) -> int:
    """Answer every shard that has no reply yet; the number of shards that stay without one."""
    ray = importlib.import_module("ray")
    todo = {shard["requests"]: shard for shard in spec["shards"] if not exists(shard["replies"])}
    if not todo:
        return 0
    ray.init(ignore_reinit_error=True)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = ray.data.from_items([{"requests": uri} for uri in todo], override_num_blocks=len(todo))
    rows = shards.map_batches(Prepare, fn_constructor_args=(spec,), batch_size=1, concurrency=1)
    replies = processor(spec)(rows).map(reply)
    arrived: dict[str, dict[str, Json]] = {}
    for row in replies.iter_rows():
        shard = todo[row["shard"]]
        (rows_of := arrived.setdefault(row["shard"], {}))[row["request_hash"]] = row
        if len(rows_of) == shard["rows"]:
            write_table(shard["replies"], list(rows_of.values()))
            del arrived[row["shard"]], todo[row["shard"]]
            print(f"{time.strftime('%H:%M:%S')} {shard['replies']}: {shard['rows']} rows", flush=True)
    return len(todo)


def exists(uri: str) -> bool:
    """Is there a file under this uri?"""
    fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(uri))
    return bool(fs.exists(path))


def write_table(uri: str, rows: Sequence[Json]) -> None:
    """A reply shard, complete under its name or not there at all."""
    fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(uri))
    table: Any = pyarrow.Table.from_pylist(list(rows), REPLY)  # what the schema does not name is left out
    part = f"{path}.{time.time_ns():x}.part"
    with fs.open(part, "wb") as stream:
        parquet.write_table(table, stream, compression="zstd")
    fs.mv(part, path)


def _tokenizer_folder(source: str) -> str:
    """A local folder or a hub's name as it is; of a remote folder everything but the weights, fetched."""
    if "://" not in source:
        return source
    fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(source))
    folder = tempfile.mkdtemp(prefix="tokenizer-")
    small = {".json", ".jinja", ".model", ".txt", ".py"}
    fs.get([file for file in fs.ls(path, detail=False) if Path(file).suffix in small], f"{folder}/")
    return folder


def main(argv: Sequence[str]) -> int:
    """0 when every shard has its reply."""
    (uri,) = argv
    with cast(Any, fsspec.open(uri, "rb")) as stream:
        spec = cast(Json, json.loads(stream.read()))
    left = run(spec)
    print(f"{left} shards are without a reply", flush=True)
    return min(left, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

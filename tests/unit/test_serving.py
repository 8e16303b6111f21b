"""What servers say of themselves: over real HTTP, from one that talks like vLLM and from one that does not."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from domain.servings import Served
from domain.workloads import EngineName, Prices, Tier
from infra.llm.vllm_cpu import precision, served_revision
from infra.serving import NOT_SERVED, served_by, served_weights, server_version
from infra.settings import Settings

Pages = dict[str, Any]
VLLM: Pages = {
    "/version": {"version": "0.32.0"},
    "/v1/models": {"data": [{"id": "small", "root": "org/small-awq"}, {"id": "odd", "root": None}]},
}


@contextmanager
def served(pages: Pages, *, key: str | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = key is None or self.headers.get("Authorization") == f"Bearer {key}"
            found = pages.get(self.path)
            self.send_response(200 if found is not None and allowed else 404)
            self.end_headers()
            self.wfile.write(found.encode() if isinstance(found, str) else json.dumps(found).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # http.server's own name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Start a server that answers these pages; returns its base URL."""
    with ExitStack() as stack:
        yield lambda pages, **options: stack.enter_context(served(pages, **options))


def tier(*urls: str, **changes: Any) -> Tier:
    return Tier(model="small", base_urls=urls, usd_per_million=Prices(input=1, output=1)).model_copy(update=changes)


def test_a_vllm_server_tells_its_version_and_what_it_serves_under_a_name(serve: Callable[..., str]) -> None:
    url = serve(VLLM)
    assert server_version(url) == server_version(url + "/") == "0.32.0"
    assert served_weights(url, "small") == "org/small-awq"
    assert served_weights(url, "gone") == NOT_SERVED
    assert served_weights(url, "odd") is None


@pytest.mark.parametrize(
    "pages", [{}, {"/version": "no json", "/v1/models": "[1]"}, {"/version": [], "/v1/models": {}}]
)
def test_a_server_that_says_nothing_leaves_it_unknown(serve: Callable[..., str], pages: Pages) -> None:
    url = serve(pages)
    assert (server_version(url), served_weights(url, "small")) == (None, None)


def test_a_server_that_is_not_there_leaves_it_unknown() -> None:
    with served(VLLM) as url:
        pass
    assert served_by(tier(url), Settings()) == Served()


def test_the_key_is_sent(serve: Callable[..., str]) -> None:
    url = serve(VLLM, key="k")
    assert served_by(tier(url), Settings()).engine_version is None
    assert served_by(tier(url), Settings(model_api_key=SecretStr("k"))).engine_version == "0.32.0"


def test_servers_of_one_tier_that_disagree_are_shown_side_by_side(serve: Callable[..., str]) -> None:
    newer = {**VLLM, "/version": {"version": "0.33.0"}}
    found = served_by(tier(serve(VLLM), serve(newer)), Settings())
    assert found == Served(engine_version="0.32.0, 0.33.0", weights="org/small-awq")


def test_of_our_own_servers_more_is_known_than_they_tell(serve: Callable[..., str]) -> None:
    ours = Settings(engines={"small": serve(VLLM)})
    assert served_by(tier(), ours) == Served(
        engine_version="0.32.0", quantisation="none", logprobs_mode="processed_logprobs"
    )
    assert served_by(tier(), Settings()) == Served()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu sse4_2 avx avx2 fma\n", "float32"),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512bw\n", None),
        ("processor : 0\nFeatures\t: fp asimd\n", None),
        (None, None),
    ],
    ids=["without AVX-512", "with AVX-512", "ARM", "no such file"],
)
def test_weights_are_computed_in_what_the_processor_is_fast_at_and_the_revision_says_so(
    tmp_path: Path, said: str | None, expected: str | None
) -> None:
    file = tmp_path / "cpuinfo"
    if said is not None:
        file.write_text(said)
    assert precision(file) == expected
    assert served_revision("abc", file) == {None: "abc", "float32": "abc+float32"}[expected]


@pytest.mark.parametrize("engine", list(EngineName))
def test_engine_arguments_say_what_no_server_tells(engine: EngineName) -> None:
    given = tier(engine=engine, engine_args={"quantization": "fp8", "logprobs_mode": "raw_logprobs"})
    assert served_by(given, Settings()) == Served(quantisation="fp8", logprobs_mode="raw_logprobs")

"""Letters' log-probabilities from a server: what it says, how it fails, and what is kept."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from lessonplan.errors import InputError
from lessonplan.labels import client
from lessonplan.labels.client import top_tokens
from lessonplan.labels.endpoint import Endpoint, parse_endpoint, secret_of
from lessonplan.labels.letters import LetterAnswers, ask_letters, letter_logprobs

RECORDED = Path(__file__).parent / "recorded"
KEY = "sk-very-secret-0123456789"

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]] | None


@dataclass
class Server:
    """An HTTP server in threads. `reply` answers the n-th request; None drops the connection."""

    reply: Callable[[int, dict[str, Any]], Reply]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(reply: Callable[[int, dict[str, Any]], Reply]) -> Iterator[Server]:
    server = Server(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.asked)
                server.asked.append(request)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                server.times.append(time.monotonic())
                server.under_way += 1
                server.most_under_way = max(server.most_under_way, server.under_way)
            answer = server.reply(number, request)
            with server.lock:
                server.under_way -= 1
            if answer is None:
                self.close_connection = True
                return
            status, body, *more = answer
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # a client that went away is meant
            pass

    with Quiet(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()


def completion(tokens: dict[str, float]) -> dict[str, Any]:
    return {
        "choices": [{"text": " A", "logprobs": {"top_logprobs": [tokens]}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 1},
    }


def fine(_number: int, request: dict[str, Any]) -> Reply:
    """The probability of A tells which prompt was asked: "p3" has 1 / (3 + 2)."""
    return 200, completion({" A": math.log(1 / (int(request["prompt"][1:]) + 2)), " B": -3.0})


def replay(name: str) -> Callable[[int, dict[str, Any]], Reply]:
    recorded = json.loads((RECORDED / name).read_text(encoding="utf-8"))

    def reply(_number: int, request: dict[str, Any]) -> Reply:
        for entry in recorded:
            if entry["request"] == request:
                return entry["status"], entry["response"]
        return 500, f"not recorded: {request}"

    return reply


def prompts_of(name: str) -> list[str]:
    recorded = json.loads((RECORDED / name).read_text(encoding="utf-8"))
    found = [e["request"].get("prompt") or e["request"]["messages"][0]["content"] for e in recorded]
    return list(dict.fromkeys(found))


@pytest.fixture(autouse=True)
def short_waits_and_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    for name in ("LESSONPLAN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def prompts(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def ask(server: Server, n: int, log: Path, **options: Any) -> LetterAnswers:
    return ask_letters(Endpoint("m", server.url, **options), prompts(n), ["AB"] * n, log)


def settled(server: Server) -> int:
    """Return how many requests came, once those that were given up have arrived, too."""
    before = -1
    while before != len(server.asked):
        before = len(server.asked)
        time.sleep(0.5)
    return before


def expected(n: int) -> list[list[float]]:
    return [[math.log(1 / (i + 2)), -3.0] for i in range(n)]


# What servers say


def test_recorded_completions(tmp_path: Path) -> None:
    asked = prompts_of("completions.json")
    assert len(asked) == 3
    with serving(replay("completions.json")) as server:
        end = Endpoint("smollm2", server.url + "/", concurrency=2)
        answers = ask_letters(end, asked, ["ABCDE"] * 3, tmp_path / "log.jsonl")
    assert set(server.paths) == {"/v1/completions"}
    # For the first question this model would end its text, and the server says nothing more.
    assert [r.get("min_tokens") for r in server.asked[:2]] == [None, 1]
    assert len(server.asked) == 4
    np.testing.assert_allclose(
        answers.logprobs[1], [-1.4794, -4.6139, -2.4725, -2.7584, -3.1154], atol=1e-3
    )
    assert not np.isnan(answers.logprobs).any()
    # As many as SmolLM2's tokenizer makes of the prompts: the server adds no token at the start.
    assert (answers.prompt_tokens, answers.completion_tokens) == (95 + 95 + 106, 3)
    assert (answers.asked, answers.known) == (3, 0)


def test_recorded_chat(tmp_path: Path) -> None:
    asked = prompts_of("chat.json")
    with serving(replay("chat.json")) as server:
        end = Endpoint("smollm2", server.url, api="chat")
        answers = ask_letters(end, asked, ["ABCDEF"] * 2, tmp_path / "log.jsonl")
    assert set(server.paths) == {"/v1/chat/completions"}
    np.testing.assert_allclose(
        answers.logprobs[0], [-2.3265, -2.9828, -2.0544, -1.5520, -2.1929, -4.6218], atol=1e-3
    )
    assert answers.completion_tokens == 2


def test_recorded_refusal_names_the_prompt(tmp_path: Path) -> None:
    with serving(replay("too_long.json")) as server:
        end = Endpoint("smollm2", server.url)
        with pytest.raises(InputError, match=r"'word word .*status 400\): This model's maximum"):
            ask_letters(end, prompts_of("too_long.json"), ["AB"], tmp_path / "log.jsonl")
    assert len(server.asked) == 1


def test_llama_cpp_answers_completions_with_a_list() -> None:
    top = [{"id": 7, "token": " A", "logprob": -0.5}, {"id": 8, "token": "A", "logprob": -1.5}]
    body = {"choices": [{"logprobs": {"content": [{"token": " A", "top_logprobs": top}]}}]}
    assert top_tokens(body) == {" A": -0.5, "A": -1.5}


def test_equal_tokens_add_up_and_impossible_ones_are_left_out() -> None:
    top = [("A", math.log(0.25)), ("A", math.log(0.5)), ("B", -9999.0), ("C", None)]
    entries = [{"token": token, "logprob": value} for token, value in top]
    tokens = top_tokens({"choices": [{"logprobs": {"content": [{"top_logprobs": entries}]}}]})
    assert tokens == pytest.approx({"A": math.log(0.75)})


@pytest.mark.parametrize("tokens", [{" A": 0.7, " B": 0.2}, {" A": -0.2, " B": -0.3}])
def test_what_is_no_natural_logarithm_is_refused(tokens: dict[str, float]) -> None:
    with pytest.raises(InputError, match="more than 100 %"):
        top_tokens(completion(tokens))


def test_a_text_that_ends_at_once_has_no_letters(tmp_path: Path) -> None:
    ended = {"choices": [{"logprobs": {"top_logprobs": []}, "finish_reason": "stop"}]}

    def reply(_number: int, request: dict[str, Any]) -> Reply:
        unknown = {"error": {"message": "Unrecognized request argument supplied: min_tokens"}}
        return (400, unknown) if "min_tokens" in request else (200, ended)

    with serving(reply) as server:
        answers = ask(server, 2, tmp_path / "log.jsonl")
        again = ask(server, 2, tmp_path / "log.jsonl")
    assert np.isnan(answers.logprobs).all()
    assert (len(server.asked), again.known, again.prompt_tokens) == (4, 2, 0)


def test_missing_letters_stay_missing(tmp_path: Path) -> None:
    with serving(lambda *_: (200, completion({" A": -0.5, "b": -1.5, " The": -2.5}))) as server:
        answers = ask(server, 1, tmp_path / "log.jsonl")
    np.testing.assert_array_equal(answers.logprobs[0], [-0.5, np.nan])


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["", " ", "▁", "Ġ"]), st.sampled_from("ABCDE")),
        st.floats(1e-9, 1.0),
        max_size=20,
    ),
    st.dictionaries(
        st.text(max_size=4).filter(lambda t: t.strip(" ▁Ġ") not in list("ABCDE")),
        st.floats(-20, 0),
        max_size=5,
    ),
    st.lists(st.sampled_from("ABCDE"), unique=True),
)
def test_letters_add_up_the_ways_to_write_them(
    weights: dict[tuple[str, str], float], others: dict[str, float], letters: list[str]
) -> None:
    whole = max(1.0, sum(weights.values()))
    share = {key: weight / whole for key, weight in weights.items()}
    tokens = {mark + letter: math.log(p) for (mark, letter), p in share.items()} | others
    found = letter_logprobs(tokens, letters)
    assert found.shape == (len(letters),)
    assert found.dtype == np.float64
    for letter, value in zip(letters, found, strict=True):
        p = [p for (_, x), p in share.items() if x == letter]
        assert np.isnan(value) if not p else math.exp(value) == pytest.approx(sum(p))


# What goes wrong and passes


def test_failures_that_pass_are_tried_again(tmp_path: Path) -> None:
    failures: list[Reply] = [(500, "oh"), (503, {"error": "busy"}), None, (408, ""), (409, "")]

    def reply(number: int, request: dict[str, Any]) -> Reply:
        return failures[number] if number < len(failures) else fine(number, request)

    with serving(reply) as server:
        answers = ask(server, 2, tmp_path / "log.jsonl")
    np.testing.assert_allclose(answers.logprobs, expected(2))
    assert len(server.asked) == len(failures) + 2


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_obeyed(tmp_path: Path, dated: bool) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2.9), usegmt=True)
    wait = {"Retry-After": date if dated else "0.6"}

    def reply(number: int, request: dict[str, Any]) -> Reply:
        return (429, {}, wait) if number == 0 else fine(number, request)

    with serving(reply) as server:
        ask(server, 1, tmp_path / "log.jsonl")
    assert server.times[1] - server.times[0] > 0.55


def test_retry_after_is_read() -> None:
    now = datetime.now(UTC)
    soon = client._retry_after(format_datetime(now + timedelta(seconds=60), usegmt=True))
    assert soon is not None
    assert 50 < soon <= 60
    assert client._retry_after(format_datetime(now - timedelta(days=1), usegmt=True)) == 0
    assert client._retry_after("7") == 7
    assert client._retry_after("soon") is client._retry_after("inf") is None
    assert client._retry_after(None) is None


def test_a_server_that_stays_down(tmp_path: Path) -> None:
    with serving(lambda *_: (502, "<html>bad gateway</html>")) as server:
        message = r"v1/completions did not answer in 3 tries; .* status 502 \(an HTML page\)"
        with pytest.raises(InputError, match=message) as caught:
            ask(server, 9, tmp_path / "log.jsonl", attempts=3)
    assert len(server.asked) == 3  # the first prompt alone
    assert "kept" not in str(caught.value)
    with pytest.raises(InputError, match=r"127\.0\.0\.1.* in 2 tries.*connection failed"):
        ask(server, 2, tmp_path / "log.jsonl", attempts=2)


def test_slow_server(tmp_path: Path) -> None:
    def reply(number: int, request: dict[str, Any]) -> Reply:
        if number < 2:
            time.sleep(0.8)
        return fine(number, request)

    with serving(reply) as server:
        with pytest.raises(InputError, match=r"no answer within 0\.3 seconds"):
            ask(server, 1, tmp_path / "log.jsonl", attempts=2, timeout=0.3)
        assert ask(server, 1, tmp_path / "log.jsonl").asked == 1


# What does not pass


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((404, {"error": {"message": "The model `m` does not exist.\nSee"}}), "the model 'm' .*40"),
        ((404, {"detail": "Not Found"}), r"404: Not Found\)\. The base .* ends with /v1"),
        ((200, "<!DOCTYPE html><p>Hello"), "not an OpenAI-compatible server's.*an HTML page"),
        ((200, "hello"), "not an OpenAI-compatible server's.*answered with hello"),
        ((200, {"ok": True}), "not that of an OpenAI-compatible server"),
        ((200, [1]), "not that of an OpenAI-compatible server"),
        ((302, "", {"Location": "https://login.example/x"}), "to https://login.example/x "),
        ((200, {"choices": [{"text": "A", "logprobs": None}]}), "gives no log-prob.*logits_all"),
        ((200, {"choices": [{"text": "A"}]}), "gives no log-probabilities"),
        ((200, {"choices": [{"logprobs": {"content": None}}]}), "gives no log-probabilities"),
        (
            (200, {"choices": [{"logprobs": {"content": [{"top_logprobs": []}]}}]}),
            "gives no log-probabilities",
        ),
        ((400, {"error": "logprobs must be at most 5"}), "not as many as 20 .*must be at most 5"),
        (
            (500, {"error": {"message": "logprobs is not supported for models created with"}}),
            "gives no log-probabilities.*is not supported",
        ),
        ((422, {"detail": [{"loc": ["body"], "msg": "Field required"}]}), "Field required"),
        ((413, "too large"), r"refused the request \(status 413\): too large"),
        ((401, {"error": "who"}), "wants a key .*none was given.*variable LESSONPLAN_API_KEY"),
    ],
)
def test_failures_that_stay_cost_one_request(tmp_path: Path, reply: Reply, message: str) -> None:
    with serving(lambda *_: reply) as server, pytest.raises(InputError, match=message):
        ask(server, 20, tmp_path / "log.jsonl")
    assert len(server.asked) == 1
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_servers_that_want_the_other_name_of_the_limit(tmp_path: Path) -> None:
    chat = {
        "choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "A", "logprob": -1}]}]}}]
    }
    use = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."

    def reply(_number: int, request: dict[str, Any]) -> Reply:
        return (400, {"error": {"message": use}}) if "max_tokens" in request else (200, chat)

    with serving(reply) as server:
        answers = ask(server, 3, tmp_path / "log.jsonl", api="chat", concurrency=1)
    assert len(server.asked) == 4  # only the first is asked twice
    np.testing.assert_array_equal(answers.logprobs, [[-1, np.nan]] * 3)
    with (
        serving(lambda *_: (400, {"error": use})) as server,
        pytest.raises(InputError, match="Use 'max_completion_tokens'"),
    ):
        ask(server, 3, tmp_path / "other.jsonl", api="chat")
    assert len(server.asked) == 2
    # Completions have no other name, but vLLM's message on long prompts mentions both.
    with (
        serving(lambda *_: (400, {"error": use})) as server,
        pytest.raises(InputError, match="Use 'max_completion_tokens'"),
    ):
        ask(server, 3, tmp_path / "third.jsonl")
    assert len(server.asked) == 1


# The key


def everything(error: BaseException) -> str:
    seen = []
    link: BaseException | None = error
    while link is not None:
        seen += [str(link), repr(link), repr(vars(link))]
        link = link.__cause__ or link.__context__
    return "\n".join(seen)


@pytest.mark.parametrize("status", [200, 302, 400, 401, 403, 404, 500, None])
def test_key_is_sent_and_shown_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    status: int | None,
) -> None:
    monkeypatch.setenv("MY_KEY", KEY + "\n")
    caplog.set_level(0)
    said = {"error": {"message": f"no good: {'x' * 180} Bearer {KEY}"}}
    reply = None if status is None else (status, said, {"Location": "/elsewhere"})
    with serving(lambda *_: reply) as server:
        with pytest.raises(InputError) as caught:
            ask(server, 2, tmp_path / "log.jsonl", key_variable="MY_KEY", attempts=2)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    shown = everything(caught.value) + "".join(capfd.readouterr()) + caplog.text
    shown += "".join(p.read_text() for p in tmp_path.iterdir())
    assert KEY[:8] not in shown
    if status in (401, 403):
        assert "refused the key in the environment variable MY_KEY" in str(caught.value)


def test_key_in_a_redirect_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESSONPLAN_API_KEY", KEY)
    reply = (307, "", {"Location": f"http://127.0.0.1:9/?k={KEY}"})
    message = r"sends requests on to .*k=\[key\] "
    with serving(lambda *_: reply) as server, pytest.raises(InputError, match=message) as caught:
        ask(server, 2, tmp_path / "log.jsonl")
    assert KEY not in everything(caught.value)
    assert len(server.asked) == 1


def test_which_key_goes_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(fine) as server:
        ask(server, 1, tmp_path / "a.jsonl")
        assert "Authorization" not in server.headers[-1]
        with pytest.raises(InputError, match=r"goes to https://api\.openai\.com alone"):
            ask(server, 1, tmp_path / "b.jsonl", key_variable="OPENAI_API_KEY")
        with pytest.raises(InputError, match="variable NOT_SET is to hold a key, and is empty"):
            ask(server, 1, tmp_path / "b.jsonl", key_variable="NOT_SET")
        monkeypatch.setenv("LESSONPLAN_API_KEY", "other")
        ask(server, 1, tmp_path / "b.jsonl")
        assert server.headers[-1]["Authorization"] == "Bearer other"
        monkeypatch.setenv("LESSONPLAN_API_KEY", "sk-sécret")
        with pytest.raises(InputError, match="LESSONPLAN_API_KEY holds is no key") as caught:
            ask(server, 1, tmp_path / "c.jsonl")
        assert "cret" not in everything(caught.value)
    assert KEY not in "".join(p.read_text() for p in tmp_path.iterdir())
    monkeypatch.delenv("LESSONPLAN_API_KEY")
    openai = secret_of(Endpoint("m", "https://api.openai.com/v1"))
    assert openai[0] == KEY
    assert KEY not in repr(openai)
    for url in ("http://api.openai.com/v1", "https://api.openai.com.evil.example/v1"):
        assert secret_of(Endpoint("m", url)) == (None, "LESSONPLAN_API_KEY")


# The log


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log.jsonl"
    counts: list[int] = []
    with serving(fine) as server:
        end = Endpoint("m", server.url)
        first = ask_letters(end, ["p0", "p1", "p0"], ["AB", "AB", "B"], log)
        assert sorted(r["prompt"] for r in server.asked) == ["p0", "p1"]
        assert (first.asked, first.known, first.prompt_tokens) == (2, 0, 20)
        np.testing.assert_array_equal(first.logprobs[2], [-3.0])
        second = ask_letters(
            Endpoint("m", server.url + "/"), prompts(4), ["AB"] * 4, log, on_answer=counts.append
        )
        assert (second.asked, second.known, second.prompt_tokens) == (2, 2, 40)
        assert counts == [2, 3, 4]
        np.testing.assert_allclose(second.logprobs, expected(4))
        assert len(server.asked) == 4
        # Another model, api or number of top tokens is another question.
        ask(server, 1, log, top=5)
        assert server.asked[-1]["logprobs"] == 5
    assert ask_letters(end, prompts(4), ["AB"] * 4, log).asked == 0  # the server is gone
    assert ask_letters(end, [], [], log).logprobs == []


def test_an_error_midway_keeps_what_came(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    broken = True

    def reply(number: int, request: dict[str, Any]) -> Reply:
        return (403, "") if broken and number >= 5 else fine(number, request)

    with serving(reply) as server:
        message = rf"none was given.* 5 of 12 answers are kept in {log}; the same command goes on"
        with pytest.raises(InputError, match=message):
            ask(server, 12, log, concurrency=1)
        broken = False
        before = len(server.asked)
        answers = ask(server, 12, log)
        assert len(server.asked) - before == 7
    assert (answers.asked, answers.known) == (7, 5)
    np.testing.assert_allclose(answers.logprobs, expected(12))


@pytest.mark.parametrize("inside_a_loop", [False, True])
@pytest.mark.parametrize("signalled", [False, True])
def test_stopping_midway_keeps_what_came(
    tmp_path: Path, inside_a_loop: bool, signalled: bool
) -> None:
    log = tmp_path / "log.jsonl"
    stopping = True

    def reply(number: int, request: dict[str, Any]) -> Reply:
        if stopping and signalled and number >= 6:
            if number == 6:
                os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C
            time.sleep(1.0)
        return fine(number, request)

    def stop(done: int) -> None:
        if not signalled and done == 4:
            raise RuntimeError("enough")

    with serving(reply) as server:
        end = Endpoint("m", server.url, concurrency=2)

        def go() -> None:
            ask_letters(end, prompts(40), ["AB"] * 40, log, on_answer=stop)

        async def cell() -> None:
            go()

        loop = asyncio.new_event_loop()  # as Jupyter has it, without asyncio.run's own Ctrl-C
        with pytest.raises(KeyboardInterrupt if signalled else RuntimeError):
            loop.run_until_complete(cell()) if inside_a_loop else go()
        loop.close()
        stopping = False
        kept = len(log.read_text().splitlines())
        assert 4 <= kept < 40
        before = settled(server)
        answers = ask(server, 40, log)
        assert len(server.asked) - before == 40 - kept
    assert (answers.known, answers.asked) == (kept, 40 - kept)
    np.testing.assert_allclose(answers.logprobs, expected(40))


def test_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def cell() -> LetterAnswers:
        return ask(server, 3, tmp_path / "log.jsonl")

    with serving(fine) as server:
        np.testing.assert_allclose(asyncio.run(cell()).logprobs, expected(3))


@pytest.mark.parametrize("cut", [1, 20])
def test_a_line_cut_short_is_repaired(tmp_path: Path, cut: int) -> None:
    log = tmp_path / "log.jsonl"
    with serving(fine) as server:
        ask(server, 3, log, concurrency=1)
        whole = log.read_bytes()
        log.write_bytes(whole[:-cut])
        answers = ask(server, 4, log, concurrency=1)
        # Without its line break alone, a line is whole.
        assert (answers.known, answers.asked) == ((3, 1) if cut == 1 else (2, 2))
        np.testing.assert_allclose(answers.logprobs, expected(4))
        assert log.read_bytes().startswith(whole)
        assert ask(server, 4, log).known == 4


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', '{"key": 1, "tokens": {}}', ""])
def test_other_broken_lines_are_named(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    with serving(fine) as server:
        ask(server, 2, log)
        first, second = log.read_text().splitlines()
        log.write_text(f"{first}\n{line}\n{second}\n")
        with pytest.raises(InputError, match=r"log\.jsonl, line 2 is no answer"):
            ask(server, 3, log)
    assert log.read_text() == f"{first}\n{line}\n{second}\n"


def test_two_processes_do_not_write_to_one_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with serving(fine) as server, FileLock(f"{log}.lock"):
        with pytest.raises(InputError, match="Another process is writing answers to"):
            ask(server, 1, log)
        assert server.asked == []


# Not too much at once


def test_concurrency_is_bounded_and_used(tmp_path: Path) -> None:
    def reply(number: int, request: dict[str, Any]) -> Reply:
        time.sleep(0.1)
        return fine(number, request)

    with serving(reply) as server:
        ask(server, 16, tmp_path / "log.jsonl", concurrency=3)
    assert server.most_under_way <= 3
    assert server.most_under_way > 1
    assert server.asked[0]["prompt"] == "p0"


def test_the_first_prompt_is_asked_alone(tmp_path: Path) -> None:
    answered: list[float] = []

    def reply(number: int, request: dict[str, Any]) -> Reply:
        if number == 0:
            time.sleep(0.3)
            answered.append(time.monotonic())
        return fine(number, request)

    with serving(reply) as server:
        ask(server, 5, tmp_path / "log.jsonl")
    assert server.times[1] > answered[0]


def test_requests_are_spaced(tmp_path: Path) -> None:
    with serving(fine) as server:
        ask(server, 6, tmp_path / "log.jsonl", per_minute=300)  # one every 0.2 seconds
    assert server.times[-1] - server.times[0] > 0.9 * 5 * 0.2


# Addresses


def test_addresses() -> None:
    end = parse_endpoint("org/model-7B@http://localhost:8000/v1")
    assert end == Endpoint("org/model-7B", "http://localhost:8000/v1")
    assert parse_endpoint("a@b@https://h/v1/") == Endpoint("a@b", "https://h/v1/")
    for other in ("smollm2-135m", "./folder", "owner/name", "/a/b.gguf", "me@home", ""):
        assert parse_endpoint(other) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("@http://h/v1", "needs the model's name"),
        ("http://h:1/v1", r"Write NAME@http://h:1/v1\."),
        ("m@ftp://h/v1", r"no address of a server\. One is like http://localhost:8000/v1"),
        ("m@http://", "no address"),
        ("m@http://h:port/v1", "no address"),
        ("m@http://[::1/v1", "no address"),
        ("m@http://h/v1?key=hidden", "http://h/v1 must end with its path"),
        ("m@http://h/v1/chat/completions", "must be the base"),
        ("m@http://me:hidden@h/v1", "the server at h holds a user or password"),
        ("http://me:hidden@h/v1", "the server at h holds a user or password"),
        ("m@http://me:hidden@h:port/v1", "user or password"),
        ("m@http://me:hid/hidden@h/v1", "user or password"),
        ("m@http://me:hidden@[::1/v1", "user or password"),
        ("m@http://me:p@h/v1?key=hidden", "user or password"),
        ("m@ftp://h/v1?key=hidden", "must end with its path"),
    ],
)
def test_addresses_that_are_refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_endpoint(spec)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"api": "other"},
        {"concurrency": 0},
        {"attempts": 0},
        {"top": 0},
        {"timeout": 0.0},
        {"timeout": math.nan},
        {"per_minute": -1.0},
    ],
)
def test_options_that_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))} must be"):
        Endpoint("m", "http://h/v1", **options)


@pytest.mark.parametrize("package", ["httpx", "tenacity"])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(InputError, match=rf"{package}: pip install 'lessonplan\[labels\]'"):
        ask_letters(Endpoint("m", "http://h/v1"), ["p"], ["AB"], tmp_path / "log.jsonl")


def test_bad_arguments(tmp_path: Path) -> None:
    end = Endpoint("m", "http://h/v1")
    with pytest.raises(ValueError, match="2 prompts, but letters for 1"):
        ask_letters(end, ["a", "b"], ["AB"], tmp_path / "log.jsonl")
    with pytest.raises(InputError, match="half a character"):
        ask_letters(end, ["\ud83d"], ["AB"], tmp_path / "log.jsonl")

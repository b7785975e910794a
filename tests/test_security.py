"""What comes from strangers (models, data, tables, servers) does no harm, and keys stay secret."""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
import re
import shutil
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lessonplan
from lessonplan import cli
from lessonplan.errors import InputError, without_secrets
from lessonplan.study.files import slug

CHROMIUM = Path("/usr/bin/chromium")
API_KEY, HF_TOKEN = "sk-quite-secret-0123456789", "hf_quiteSecretToken0123456789"


class Said(NamedTuple):
    status: int
    text: str


def run(*arguments: object) -> Said:
    """Run the command line in this process."""
    said, argv, status = io.StringIO(), sys.argv, 0
    sys.argv = ["lessonplan", *map(str, arguments)]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(bool(end.code))
    finally:
        sys.argv = argv
    return Said(status, said.getvalue())


def question(i: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"q{i}",
        "question": f"Under which category is disease number {i} classified?",
        "options": [f"Group {i % 7}", f"Disorder {i % 5} b", f"Form {i % 3} c", f"Other {i}"],
        "answer": "ABCD"[i * 7 % 4],
        "category": f"region {i % 4}",
        "difficulty": i * 37 % 101 / 100,
    } | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", [question(i) for i in range(8)])


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that foreign code makes if it runs."""
    return tmp_path / "marker"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LESSONPLAN_CACHE", str(tmp_path / "cache"))


# ---- Code ----------------------------------------------------------------------------------------

MODEL_CODE = """
from pathlib import Path
Path({marker!r}).write_text("executed")
from transformers import LlamaConfig, LlamaForCausalLM
class MyConfig(LlamaConfig):
    model_type = "never_heard_of"
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


def test_code_of_a_model_runs_only_when_asked_for(
    tiny_llama: Path, data: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever may be asked says yes
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "modeling_mine.py").write_text(MODEL_CODE.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "never_heard_of",
        "auto_map": {
            "AutoConfig": "modeling_mine.MyConfig",
            "AutoModelForCausalLM": "modeling_mine.MyModel",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    command = ["evaluate", data, "-m", folder, "-o", tmp_path / "o.csv", "--set", "threads=1"]

    said = run(*command)
    assert said.status == 2, said
    assert not marker.exists()

    assert run(*command, "--trust-remote-code").status == 0
    assert marker.exists()


def test_code_of_a_data_set_never_runs(tmp_path: Path, marker: Path) -> None:
    folder = tmp_path / "mydata"
    folder.mkdir()
    code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('executed')\n"
    (folder / "mydata.py").write_text(code)
    with pytest.raises(InputError, match="mydata"):
        lessonplan.load_questions(str(folder))
    said = run("order", folder, "-s", "random", "-o", tmp_path / "o.jsonl")
    assert said.status == 2
    assert not marker.exists()


class Bomb:
    """An object whose unpickling makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def pickled(path: Path, marker: Path, kind: str) -> None:
    if kind == "torch":
        torch.save({"weight": Bomb(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Bomb(marker)}))


@pytest.mark.parametrize("kind", ["torch", "plain pickle"])
def test_the_bomb_is_one(tmp_path: Path, marker: Path, kind: str) -> None:
    pickled(tmp_path / "b.bin", marker, kind)
    assert not marker.exists()
    if kind == "torch":
        torch.load(tmp_path / "b.bin", weights_only=False)
    else:
        pickle.loads((tmp_path / "b.bin").read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("kind", ["torch", "plain pickle"])
def test_pickled_weights_are_refused(
    tiny_llama: Path, data: Path, tmp_path: Path, marker: Path, kind: str
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    pickled(folder / "pytorch_model.bin", marker, kind)
    for more in ([], ["--trust-remote-code"]):
        said = run("evaluate", data, "-m", folder, "-o", tmp_path / "o.csv", *more)
        assert said.status == 2
        assert ".safetensors" in said.text
        assert "pickled weights" in said.text
    assert not marker.exists()


def test_pickled_adapters_are_refused(
    tiny_llama: Path, data: Path, tmp_path: Path, marker: Path
) -> None:
    folder = tmp_path / "adapter"
    said = run("train", data, "-s", "random", "-m", tiny_llama, "-o", folder, "--set", "threads=1")
    assert said.status == 0, said
    (folder / "adapter_model.safetensors").unlink()
    pickled(folder / "adapter_model.bin", marker, "torch")
    said = run("evaluate", data, "-m", tiny_llama, "--adapter", folder, "-o", tmp_path / "o.csv")
    assert said.status == 2
    assert "adapter_model.safetensors" in said.text
    assert "pickled" in said.text
    assert not marker.exists()


def test_a_pickled_embedder_runs_no_code(data: Path, tmp_path: Path, marker: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentence_transformers")
    folder = tmp_path / "embedder"
    transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    ).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    pickled(folder / "pytorch_model.bin", marker, "torch")
    data = write(data, [question(i) for i in range(60)])
    said = run("label", "category", data, "--embedder", folder, "-o", tmp_path / "o.csv")
    assert said.status == 2, said
    assert "Traceback" not in said.text
    assert not marker.exists()


# ---- YAML ----------------------------------------------------------------------------------------

BOMB = (
    "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "strategies: *i\n"
)
HOSTILE_YAML = {
    "apply": "name: !!python/object/apply:pathlib.Path.touch [[!!python/name:pathlib.Path MARKER]]",
    "new": "name: !!python/object/new:os.system [touch MARKER]",
    "system": "name: !!python/object/apply:os.system [touch MARKER]",
    "a key": "? !!python/object/apply:os.system [touch MARKER]\n: 1",
    "bomb": BOMB,
    "a bomb of keys": re.sub(r"\[(.*)\]", lambda m: "{" + ", ".join(
        f"k{i}: {v}" for i, v in enumerate(m[1].split(", "))) + "}", BOMB),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_yaml_builds_nothing(tmp_path: Path, marker: Path, text: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text.replace("MARKER", str(marker)))
    said = run("study", file, "-o", tmp_path / "out")
    assert said.status == 2
    assert str(file) in said.text or "aliases" in said.text
    assert len(said.text) < 5000
    assert not marker.exists()
    # The folder's own study.yaml is read, too.
    (tmp_path / "out").mkdir(exist_ok=True)
    shutil.copy(file, tmp_path / "out" / "study.yaml")
    (tmp_path / "out" / ".lock").touch()
    ours = tmp_path / "ours.yaml"
    ours.write_text("training: icd10cm\nevaluation: icd10cm\nmodels: smollm2-135m\n")
    assert run("study", ours, "-o", tmp_path / "out").status == 2
    assert not marker.exists()


# ---- A study of hostile names --------------------------------------------------------------------

TEX = r"\input{/etc/passwd} \write18{touch marker} $x_1^2$ 100% & # {~}"
HOSTILE = [
    "<script>window.pwned=1</script>",
    '"><img src=x onerror="window.pwned=1">',
    "</style></svg><svg onload='window.pwned=1'>",
    '=HYPERLINK("http://example.invalid","x")',
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "two | three\n| --- |\n| four `code` [x](javascript:window.pwned=1)",
    TEX,
    "../../outside",
    "/etc/absolute",
    "nul\0byte",
    "long " + "x" * 3000,
    "CON",
    "..",
    "‮right to left",
]


@contextmanager
def serving() -> Iterator[str]:
    """A server that wants a key, answers anything, and puts the key into what it says."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = zlib.crc32(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Authorization"] == f"Bearer {API_KEY}"
            tokens = {f" {letter}": -1.5 - (asked >> i & 3) for i, letter in enumerate("ABCD")}
            body = json.dumps(
                {
                    "choices": [{"text": API_KEY, "logprobs": {"top_logprobs": [tokens]}}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "key": API_KEY},
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v1"
        http.shutdown()
        thread.join()


class Hostile(NamedTuple):
    """A finished study, the folder above it, and all that was said and logged."""

    root: Path
    study: Path
    said: str


@pytest.fixture(scope="module")
def hostile(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    """A study whose every name and text is hostile, with labels from a server that needs a key."""
    root = tmp_path_factory.mktemp("hostile")
    (root / "in").mkdir()
    n = len(HOSTILE)

    def rows(first: int, count: int) -> list[dict[str, Any]]:
        return [
            question(
                i,
                id=HOSTILE[i % n] + f" {i // n}" * (i >= n),
                question=f"{HOSTILE[i % n]} {i}",
                options=[f"{HOSTILE[(i + k) % n][:60]} {k}" for k in range(4)],
                category=HOSTILE[i % 9],
            )
            for i in range(first, first + count)
        ]

    write(root / "in" / "train.jsonl", rows(0, 18))
    write(root / "in" / "test.jsonl", rows(18, 18))
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    level = logging.getLogger().level
    with pytest.MonkeyPatch.context() as patch, serving() as url:
        patch.setenv("LESSONPLAN_CACHE", str(root / "cache"))
        patch.setenv("LESSONPLAN_API_KEY", API_KEY)
        patch.setenv("HF_TOKEN", HF_TOKEN)
        settings = {
            "name": HOSTILE[0],
            "models": [{"model": str(tiny_llama), "name": HOSTILE[1]}],
            "training": [{"data": str(root / "in" / "train.jsonl"), "name": "../../" + TEX}],
            "evaluation": [{"data": str(root / "in" / "test.jsonl"), "name": HOSTILE[7]}],
            "strategies": ["random", "blocked", "curriculum"],
            "seeds": 2,
            "labels": {
                "difficulty": {
                    HOSTILE[2]: {"column": "difficulty"},
                    "../=server": {
                        "models": f"{HOSTILE[3]}@{url}",
                        "allow_uninformative": True,
                    },
                },
                "category": {"@|human": {"column": "category"}},
            },
            "recipe": {"threads": 1, "adapter": {"rank": 2, "layers": 1}, "max_tokens": 400},
        }
        file = root / "in" / "study.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.DEBUG)
        try:
            said = run("study", file, "-o", root / "above" / "study")
        finally:
            logging.getLogger().removeHandler(handler)
            logging.getLogger().setLevel(level)
    assert said.status == 0, said.text
    yield Hostile(root, root / "above" / "study", said.text + logged.getvalue())
    shutil.rmtree(root)


class Tags(HTMLParser):
    """Collect the tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_no_text_becomes_markup(hostile: Hostile) -> None:
    page = Tags((hostile.study / "report" / "index.html").read_text())
    tags = [tag for tag, _ in page.tags]
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert [kind for kind in scripts if kind != "application/json"] == [None]  # the rest is data
    assert not {"iframe", "object", "embed", "form", "base", "link"} & set(tags)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/")), (tag, attributes)
    shown = "".join(page.texts)
    for text in HOSTILE[:4]:  # all of it is there to be read
        assert text in shown


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium at /usr/bin/chromium")
def test_no_text_runs_in_a_browser(hostile: Hostile, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright")
    text = (hostile.study / "report" / "index.html").read_text()
    # Escaping has to hold without the page's policy, too.
    bare, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert policies == 1
    (tmp_path / "bare.html").write_text(bare)
    with playwright.sync_playwright() as p:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        page = browser.new_page()
        page.goto((tmp_path / "bare.html").as_uri())
        for button in page.locator("table.sortable thead button").all()[:20]:
            button.evaluate("b => b.click()")
        ran = page.evaluate("window.pwned")
        images = page.locator("img[src=x]").count()
        browser.close()
    assert ran is None
    assert images == 0


def test_no_cell_is_a_formula(hostile: Hostile) -> None:
    quoted = 0
    for file in (hostile.study / "report").glob("*.csv"):
        with file.open(newline="") as opened:
            for cell in (cell for row in csv.reader(opened) for cell in row):
                quoted += cell.startswith(("'=", "'+", "'-", "'@"))
                if re.match(r"[=+\-@\t\r\n＝＋－＠]", cell):
                    float(cell)
    assert quoted


def test_markdown_tables_stay_tables(hostile: Hostile) -> None:
    files = list((hostile.study / "report").glob("*.md"))
    assert any(r"two \| three" in file.read_text() for file in files)
    for file in files:
        rows = [line for line in file.read_text().splitlines() if line.startswith("|")]
        columns = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}
        assert len(columns) == 1, file
        assert not re.search(r"<[a-z/]|(?<!\\)\]\(", file.read_text()), file


def test_latex_holds_no_command_of_theirs(hostile: Hostile) -> None:
    ours = r"begin|end|centering|caption|[a-z]+rule|text[a-z]+|ldots|resizebox|setbox|ifdim"
    files = list((hostile.study / "report").glob("*.tex"))
    assert any(r"\textbackslash{}input\{" in file.read_text() for file in files)
    for file in files:
        text = file.read_text()
        for command in re.findall(r"\\([A-Za-z]+)", text):
            assert re.fullmatch(ours, command), (file, command)
        plain = re.sub(r"\\[{}$&#%_]", "", text).replace("$-$", "")
        assert not re.search(r"[$#%^~]", plain), file
        assert plain.count("{") == plain.count("}"), file
        rows = [line for line in plain.splitlines() if line.endswith(r" \\")]
        assert len({row.count("&") for row in rows}) == 1, file


def test_nothing_is_written_outside_the_folder(hostile: Hostile) -> None:
    assert {p.name for p in hostile.root.iterdir()} == {"in", "above", "cache"}
    assert [p.name for p in (hostile.root / "above").iterdir()] == ["study"]
    assert len(list((hostile.root / "in").iterdir())) == 3
    for path in hostile.study.rglob("*"):
        assert path.resolve().is_relative_to(hostile.study.resolve())
    assert len(list((hostile.study / "data").iterdir())) == 2


def test_no_key_is_written_or_said(hostile: Hostile) -> None:
    seen = 0
    for path in (hostile.root / "above", hostile.root / "cache"):
        for file in (p for p in path.rglob("*") if p.is_file()):
            content = file.read_bytes()
            if file.suffix == ".parquet":
                content += str(pq.read_table(file).to_pydict()).encode()
            for secret in (API_KEY, HF_TOKEN):
                assert secret.encode() not in content, file
            seen += 1
    assert seen > 20
    assert API_KEY not in hostile.said
    assert HF_TOKEN not in hostile.said
    assert "127.0.0.1" in hostile.said  # the requests were logged


@given(st.one_of(st.text(max_size=300), st.sampled_from(HOSTILE)))
def test_any_name_becomes_a_file_name(name: str) -> None:
    made = slug(name)
    assert Path(made).name == made
    assert not made.startswith(".")
    assert "\0" not in made
    assert len(made.encode("utf-8", "surrogatepass")) <= 200


# ---- Keys in messages ----------------------------------------------------------------------------

ADDRESS = "http://me:pa55-word@127.0.0.1:9"
COMMANDS = {
    "model": f"evaluate DATA -m m@{ADDRESS}/v1 -o NEW.csv",
    "label model": f"label difficulty DATA -m m@{ADDRESS}/v1 -o NEW.csv",
    "nameless label model": f"label difficulty DATA -m {ADDRESS}/v1 -o NEW.csv",
    "data": f"train {ADDRESS}/t.jsonl?token=pa55-word -s random -o NEW",
    "order": f"order {ADDRESS}/t.jsonl -s random -o NEW.jsonl",
    "labels": f"order DATA -s curriculum --labels {ADDRESS}/t.csv -o NEW.jsonl",
    "study model": "study STUDY -o NEW",
    "set": f"study STUDY -o NEW --set models={ADDRESS}",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_message_shows_a_password(data: Path, tmp_path: Path, command: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"training: {data}\nevaluation: {{data: {data}, name: test}}\n"
        f"models: m@{ADDRESS}/v1\nstrategies: [random]\n"
    )
    words = command.replace("STUDY", str(study)).replace("DATA", str(data)).split()
    said = run(*(word.replace("NEW", str(tmp_path / "new")) for word in words))
    assert said.status != 0
    assert "pa55" not in said.text
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p not in (study, data)]
    assert not [p for p in written if b"pa55" in p.read_bytes()]


@pytest.mark.parametrize("key", [API_KEY, HF_TOKEN])
def test_a_key_in_place_of_its_variable_is_not_shown(data: Path, tmp_path: Path, key: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"training: {data}\nevaluation: {{data: {data}, name: test}}\n"
        "strategies: [random, curriculum]\n"
        "labels: {difficulty: {served: {models: m@http://127.0.0.1:9/v1, "
        f"endpoint: {{key_variable: {key}}}}}}}}}\n"
    )
    said = run("study", study, "-o", tmp_path / "out")
    assert said.status == 2
    assert "key_variable" in said.text
    assert key not in said.text
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and key in p.read_text()]


def test_keys_in_a_foreign_message_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library's error says, ours does not repeat its keys."""
    monkeypatch.setenv("HF_TOKEN", HF_TOKEN)
    said = str(InputError(f"401 for https://u:p@host/x?a=1&X-Amz-Signature=ab%2F&b=2 ({HF_TOKEN})"))
    assert said == ("401 for https://[hidden]@host/x?a=1&X-Amz-Signature=[hidden]&b=2 ([HF_TOKEN])")
    plain = "m@http://localhost:8000/v1 and a@b, http://x/?q=1"
    assert without_secrets(plain) == plain

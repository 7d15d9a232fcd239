"""python -m moe_retrieval.search: how hits are shown, the command's ways in, and what it does not import."""

import io
import json
import os
import pty
import select
import subprocess
import sys

import pytest

import moe_retrieval
from moe_retrieval import data
from moe_retrieval.errors import InputError
from moe_retrieval.models.export import save
from moe_retrieval.retrieval.hits import Hit
from moe_retrieval.retrieval.index import Index, build_index
from moe_retrieval.retrieval.model import load
from moe_retrieval.search import Question, SearchConfig, main, read_questions, show
from tests.moe_retrieval.corpora import plants, write_lines
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    documents = data.load(plants(folder / "plants")).documents
    save(folder / "run", tiny_retriever(), tiny_tokenizer(), "")
    build_index(load(folder / "run"), documents, folder / "index", model_path=str(folder / "run"))
    return folder


def test_show():
    hit = Hit(1, 0.75, "torch.sort", "torch.sort", "Sorts a tensor.")
    assert show(Question("q"), [hit], False, False) == "  1  0.750  torch.sort\n            Sorts a tensor."
    assert show(Question("q"), [hit._replace(title="A title")], False, True).startswith(
        "# q\n  1  0.750  torch.sort  A t"
    )
    assert json.loads(show(Question("é", "7"), [hit], True, True)) == {
        "id": "7",
        "query": "é",
        "results": [{"rank": 1, "score": 0.75, "id": "torch.sort", "title": "torch.sort", "text": "Sorts a tensor."}],
    }


def test_files_of_questions(tmp_path):
    (tmp_path / "q.txt").write_text("first question\n\n second \n")
    assert read_questions(str(tmp_path / "q.txt")) == [Question("first question"), Question("second")]
    write_lines(tmp_path / "q.jsonl", [{"_id": "1", "text": "first"}, {"text": "second"}])
    assert read_questions(str(tmp_path / "q.jsonl")) == [Question("first", "1"), Question("second")]
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"empty.txt: holds no question"):
        read_questions(str(tmp_path / "empty.txt"))


def run(folder, capsys, monkeypatch, *arguments, stdin=""):
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
    main(["--index", str(folder / "index"), *map(str, arguments)])
    return capsys.readouterr().out


class Slowly(io.BytesIO):
    """A line a read, as a terminal gives them: what follows a line does not spoil it."""

    def read1(self, size=-1):
        return self.readline()


def test_ways_in(folder, capsys, monkeypatch, tmp_path):
    one = run(folder, capsys, monkeypatch, "moss fern", "--top-k", 2)
    assert len(one.splitlines()) == 4
    assert run(folder, capsys, monkeypatch, "--top-k", 2, stdin="moss fern\n") == one
    assert run(folder, capsys, monkeypatch, "--interactive", "--top-k", 2, stdin="moss fern\n\nnever asked") == one
    (tmp_path / "q.txt").write_text("moss fern\noak\n")
    both = run(folder, capsys, monkeypatch, "--queries", tmp_path / "q.txt", "--top-k", 2)
    assert both.startswith(f"# moss fern\n{one}# oak\n")
    lines = run(folder, capsys, monkeypatch, "--json", "--top-k", 1, stdin="moss fern\noak\n").splitlines()
    assert [json.loads(line)["query"] for line in lines] == ["moss fern", "oak"]
    assert json.loads(lines[0])["results"][0]["id"] in one
    assert run(folder, capsys, monkeypatch, "--json", stdin="") == ""


def test_words_need_no_quotes_and_a_run_has_an_index(folder, capsys, monkeypatch, tmp_path):
    one = run(folder, capsys, monkeypatch, "moss fern", "--top-k", 2)
    assert run(folder, capsys, monkeypatch, "moss", "fern", "--top-k", 2) == one
    main(["--index", str(folder), "--top-k", "2", "moss", "fern"])
    assert capsys.readouterr().out == one


def test_questions_from_python(folder):
    index = moe_retrieval.Index(folder / "index")
    ((first, second),) = moe_retrieval.search(index, ["moss fern"], 2, model=index.load_model())
    assert (first.rank, second.rank, first.title.startswith("Plant ")) == (1, 2, True)
    assert first.score >= second.score
    assert moe_retrieval.search(folder, ["moss fern"], top_k=2) == [[first, second]]


def test_what_would_command_a_terminal_is_shown(capsys):
    hit = Hit(1, 0.5, "a\x1b]0;b\x07", "\x9b31m title", "text \x1b[2J\u202e end \x7f")
    for many, as_json in ((False, False), (True, False), (True, True)):
        shown = show(Question("ask \x1b[1m", "7"), [hit], as_json, many)
        assert not {"\x1b", "\x07", "\x9b", "\x7f", "\u202e"} & set(shown)
        assert "\\u001b[2J\\u202e end" in shown
    assert json.loads(shown)["results"][0]["text"] == hit.text


def test_good_questions_are_answered_before_a_bad_one_is_told(folder, capsys, monkeypatch):
    one = run(folder, capsys, monkeypatch, "moss fern", "--top-k", 2)
    with pytest.raises(InputError, match=r"^standard input:3: not UTF-8 \(byte 0xff in column 4\)$"):
        run(folder, capsys, monkeypatch, "--top-k", 2, stdin=b"moss fern\n\noak\xff\npine\n")
    assert capsys.readouterr().out == one


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of any locale; of LC_ALL=C
def test_a_bad_question_of_a_conversation_is_told(errors, folder, capsys, monkeypatch):
    one = run(folder, capsys, monkeypatch, "moss fern", "--top-k", 2)
    stdin = io.TextIOWrapper(Slowly(b"moss fern\noak\xff\npine\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(InputError, match=r"^the question is not UTF-8$"):
        main(["--index", str(folder), "--top-k", "2", "--interactive"])
    assert capsys.readouterr().out == one


def test_a_question_that_is_none_is_refused():
    for question in (("",), (" ", "\n")):
        with pytest.raises(InputError, match="the question is empty: expected some words"):
            SearchConfig("i", question)
    with pytest.raises(InputError, match="the question is not UTF-8"):
        SearchConfig("i", ("oak\udcff",))


def until(terminal, mark, seconds=60):
    """What a terminal shows, up to this mark."""
    shown = b""
    while mark not in shown and select.select([terminal], [], [], seconds)[0]:
        shown += os.read(terminal, 4096)
    assert mark in shown, shown
    return shown.decode().replace("\r", "")


def test_a_terminal_has_a_banner_and_the_questions_before(folder):
    """Three seconds: a process of its own, for a terminal of its own."""
    terminal, end = pty.openpty()
    command = [sys.executable, "-m", "moe_retrieval.search", "--index", str(folder), "--top-k", "1"]
    environment = os.environ | {"TERM": "dumb"}
    with subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        assert "60 documents. Ask in plain words" in until(terminal, b"> ")
        os.write(terminal, b"moss fern\n")
        first = until(terminal, b"> ")
        os.write(terminal, b"\x1b[A\n")  # arrow up
        again = until(terminal, b"> ")
        os.write(terminal, b"\n")
        assert process.wait(60) == 0
    os.close(terminal)
    assert "  1  0." in first
    assert again.splitlines()[1:] == first.splitlines()[1:]


def test_bad_input(folder, tmp_path):
    with pytest.raises(InputError, match="--top-k must be at least 1, got 0"):
        SearchConfig("i", top_k=0)
    with pytest.raises(InputError, match="exclude each other"):
        SearchConfig("i", "question", interactive=True)
    with pytest.raises(InputError, match="no index"):
        Index(tmp_path)
    save(tmp_path / "other", tiny_retriever(seed=3), tiny_tokenizer(), "")
    with pytest.raises(InputError, match="made with another model"):
        main(["--index", str(folder / "index"), "--model", str(tmp_path / "other"), "question"])


def test_a_reader_that_goes_away_is_no_error(folder):
    command = [sys.executable, "-m", "moe_retrieval.search", "--index", folder / "index", "--json", "--top-k", "60"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    process.stdout.close()
    _, said = process.communicate("moss\n" * 300)
    assert said == ""
    assert process.returncode == 141


def test_the_command_and_what_it_imports(folder):
    program = (
        "import sys; from moe_retrieval.search import main; main(sys.argv[1:]); "
        "heavy = {'transformers', 'sentence_transformers', 'beir', 'sklearn', 'scipy', 'pandas', 'bm25s', 'datasets'}; "
        "heavy |= {'torch._dynamo', 'torch.distributed.nn', 'sympy', 'triton'}; "
        "print('imported', sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, "--index", folder / "index", "moss", "--top-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported []"
    plants = folder / "plants"
    bad = subprocess.run(
        [sys.executable, "-m", "moe_retrieval.search", "--index", plants, "x"], capture_output=True, text=True
    )
    assert bad.returncode == 2
    assert bad.stderr == f"error: {plants}: no index (no index.json); python -m moe_retrieval.index builds one\n"

"""The pages keep what they say: Python runs, commands parse, links lead somewhere, figures are those of the source."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest

from moe_retrieval.__main__ import COMMANDS
from moe_retrieval.cli import parse
from moe_retrieval.config import TrainConfig
from moe_retrieval.models.export import save
from moe_retrieval.train import train
from tests.moe_retrieval.rare_words import FAST, write_collection
from tests.moe_retrieval.tiny import tiny_retriever, tiny_tokenizer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench/README.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^    +\S.*$", re.MULTILINE)

TINY_MINILM = """
from moe_retrieval.models import backbones
backbones.ALIASES.clear()  # so that minilm is the small one below $MOE_RETRIEVAL_MODELS
"""

OF_THE_READER = {"docs/huggingface.md", "bench/README.md"}
"""Pages whose Python is about what the reader has: a model (tests/kernels/test_huggingface.py makes such calls), or
experts to compare with."""

BEFORE = {
    "README.md": """
import transformers
bert = transformers.BertModel(transformers.BertConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64))
model = transformers.MixtralForCausalLM(transformers.MixtralConfig(
    vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    intermediate_size=48, num_local_experts=2))
texts = ["abcd", "efgh"]
"""
}
"""What the reader of a page has already."""


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def python_of(page):
    return [code for language, code in FENCE.findall(text_of(page)) if language == "python"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """What the pages speak of, small: a run with its index, a backbone called minilm, the examples."""
    folder = tmp_path_factory.mktemp("reader")
    words = write_collection(folder / "words")
    train(replace(FAST, dataset=str(words), output_dir=str(folder / "runs" / "main"), no_eval=False))
    save(folder / "models" / "minilm", tiny_retriever(), tiny_tokenizer(), "")
    (folder / "examples").symlink_to(ROOT / "examples")
    return folder


def run(code, folder):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "0",
        "MOE_RETRIEVAL_CACHE": str(folder / "cache"), "MOE_RETRIEVAL_MODELS": str(folder / "models"),
    }  # fmt: skip
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=str)
def test_the_python_of_a_page_runs(page, workplace):
    """All of its blocks, one after the other in a process of their own: the later ones use what the first ones made."""
    if str(page) in OF_THE_READER:
        for code in python_of(page):
            ast.parse(code)
        return
    code = "\n".join([TINY_MINILM, BEFORE.get(str(page), ""), *python_of(page)])
    done = run(code, workplace)
    assert done.returncode == 0, done.stderr


# Commands.


class Parsed(Exception):
    pass


def commands_of(page):
    """The lines of its fences and indented blocks that start something of ours."""
    fenced = [code for language, code in FENCE.findall(text_of(page)) if language in ("", "sh")]
    indented = INDENTED.findall(FENCE.sub("", text_of(page)))
    lines = [line.strip() for line in "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := command_in(line))]


def command_in(line):
    """-> the words of a command that has a parser of ours: the module first.

    Placeholders in capitals and brackets are those of a synopsis, which no shell is given.
    """
    found = re.match(r"(?:\S*python3? -m |torchrun .*?-m |moe-retrieval |make train .*ARGS=)(.*)", line)
    if found is None or re.search(r"\[|\.\.\.", line):
        return None
    if line.startswith("make"):
        return ["moe_retrieval.train", *shlex.split(shlex.split(found[1], comments=True)[0])]
    start = "moe_retrieval." if line.startswith("moe-retrieval") else ""
    ours = f"{start}{found[1]}"
    return shlex.split(ours, comments=True) if ours.startswith("moe_retrieval.") else None


def parsed(words, monkeypatch):
    """What a command's own parser makes of its arguments, without running it."""
    module = importlib.import_module(words[0])

    def stop(kind, arguments, *others):
        config = parse(kind, arguments, *others)
        if hasattr(config, "contest"):
            config.contest()
        elif isinstance(config, TrainConfig):
            config.check()
        raise Parsed

    with monkeypatch.context() as patched:
        patched.setattr(module, "parse", stop)
        with pytest.raises(Parsed):
            module.main(words[1:])


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=str)
def test_the_commands_of_a_page_are_understood(page, monkeypatch, capsys):
    for words in commands_of(page):
        if "--help" in words:
            with pytest.raises(SystemExit) as caught:
                importlib.import_module(words[0]).main(words[1:])
            assert caught.value.code == 0
        else:
            parsed(words, monkeypatch)


def test_a_flag_that_is_not_there_is_found(monkeypatch):
    with pytest.raises(Exception, match="Unrecognized options: --vairant"):
        parsed(["moe_retrieval.train", "--vairant", "moe"], monkeypatch)
    assert command_in("make train NPROC=2 ARGS='--lr 1'") == ["moe_retrieval.train", "--lr", "1"]
    assert command_in("torchrun --nnodes 2 -m moe_retrieval.train --lr 1  # fast") == [
        "moe_retrieval.train",
        "--lr",
        "1",
    ]


def flags_of_ours(monkeypatch):
    """Every flag of every command, as its own parser has it."""
    found = set()
    modules = [f"moe_retrieval.{name}" for name in COMMANDS]
    modules += [f"moe_retrieval.genpoe.{path.stem}" for path in (ROOT / "moe_retrieval/genpoe").glob("*.py")]
    for name in modules:
        module = importlib.import_module(name)
        if not hasattr(module, "main"):
            continue

        def remember(kind, arguments, *others):
            found.update("--" + field.replace("_", "-") for field in kind.__dataclass_fields__)
            raise Parsed

        with monkeypatch.context() as patched:
            patched.setattr(module, "parse", remember)
            with pytest.raises(Parsed):
                module.main([])
    return found | {"--help", "--config", "--preset", "--version"}


OF_OTHERS = {"--max-restarts", "--no-build-isolation", "--force-reinstall", "--no-deps"}
"""torchrun's and pip's"""


def test_flags_in_the_text_exist(monkeypatch):
    known = flags_of_ours(monkeypatch) | OF_OTHERS
    pages = [f"docs/{name}.md" for name in GUIDES]
    for page in pages:
        words = " ".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page))))
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", words)) - known
        assert not unknown, page


GUIDES = ("quickstart", "variants", "pairs", "scratch", "distributed", "layers", "troubleshooting", "environment")


def test_the_readme_lists_every_guide():
    rows = re.findall(r"^\| \[docs/(\w+)\.md\]\(docs/\1\.md\) \| \S.* \|$", text_of("README.md"), re.MULTILINE)
    assert set(rows) == set(GUIDES)


# Links.


def anchor(heading):
    """As GitHub names it."""
    kept = [letter for letter in heading.strip().lower() if letter in " -_" or unicodedata.category(letter)[0] in "LN"]
    return "".join(kept).replace(" ", "-")


def test_anchors_are_github_s():
    assert anchor("The C++ backend") == "the-c-backend"
    assert anchor("The other `kernels`") == "the-other-kernels"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = FENCE.sub("", text_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, name = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if name:
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", found.read_text(encoding="utf-8")), re.MULTILINE)
            assert name in map(anchor, headings), target


# What pages tell of the source.

MAY_READ = ("kernels", "moe_retrieval", "bench", "tests")


def variables_read():
    """The environment variables that any file of ours asks for, in Python or in C++."""
    found = set()
    for folder in MAY_READ:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                found |= set(read_in(ast.parse(path.read_text(encoding="utf-8")), path))
            elif path.suffix in (".cpp", ".h"):
                found |= set(re.findall(r'getenv\(\s*"(\w+)"', path.read_text(encoding="utf-8")))
    return found


def read_in(tree, path="here"):
    """Of one file: by os.environ.get, os.environ[...], "..." in os.environ and os.getenv."""
    assigned = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    constants = {ast.unparse(node.targets[0]): node.value.value for node in assigned}
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Call) and node.args:
            if ast.unparse(node.func) in ("os.environ.get", "os.getenv", "environ.get", "getenv"):
                name = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("os.environ", "environ"):
            name = node.slice if isinstance(node.ctx, ast.Load) else None
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) in ("os.environ", "environ"):
            name = node.left
        if name is not None:
            value = constants.get(ast.unparse(name)) if isinstance(name, ast.Name) else getattr(name, "value", None)
            assert isinstance(value, str), f"{path}: {ast.unparse(node)} names no variable that could be told"
            yield value


def test_every_way_to_read_a_variable_is_found():
    code = 'N = "D"\nos.environ.get("A"); os.getenv("B"); os.environ["C"]; os.environ.get(N); "E" in os.environ\n'
    assert set(read_in(ast.parse(code + 'os.environ["F"] = "1"'))) == set("ABCDE")


def test_the_page_of_variables_has_each_of_them_and_no_other():
    page, _, of_others = text_of("docs/environment.md").partition("## Read by what this uses")
    assert of_others
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(listed) == variables_read()


def test_the_figures_of_the_variants_are_those_of_the_evidence():
    text = text_of("docs/variants.md")
    _, found, rest = text.partition("<!-- figures of bench/results/evidence.md -->")
    told, ended, _ = rest.partition("<!-- end of figures -->")
    assert found
    assert ended
    rows = {
        cells[0]: cells[1:]
        for line in text_of("bench/results/evidence.md").splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 5
    }
    for line in told.strip().split("\n- "):
        figures = re.findall(r"\b0\.\d+\b", line)
        (name,) = re.findall(r"^(?:- )?(`[\w-]+`|All)", line)
        known = [
            cell for row in (name.strip("`"), "dense", "untouched backbone", "sb-moe") for cell in rows.get(row, [])
        ]
        assert figures
        assert set(figures) <= set(known), line


def test_messages_of_the_troubleshooting_page_are_said_somewhere():
    """The first cells of its tables, and what its lists begin with, as far as they are code."""
    text = FENCE.sub("", text_of("docs/troubleshooting.md"))
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    quoted += re.findall(r"^- \*\*[`\"]([^`\"]+)[`\"]", text, re.MULTILINE)
    assert len(quoted) > 12
    source = "".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for package in ("kernels", "moe_retrieval")
        for path in (ROOT / package).rglob("*.py")
    )
    assert not [words for words in quoted if words not in source]

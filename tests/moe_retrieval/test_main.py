"""moe-retrieval COMMAND: all commands under one name, and what it says of itself."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kernels


def run(*arguments):
    command = [sys.executable, "-m", "moe_retrieval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_is_declared_and_there():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["moe-retrieval"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_version_and_commands():
    assert run("--version").stdout == f"moe-retrieval {kernels.__version__}\n"
    listed = run().stdout
    assert listed == run("--help").stdout
    for command in ("train", "pretrain", "evaluate", "analyze", "report", "index", "search", "triplets", "similarity"):
        assert f"\n  {command} " in listed


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (sentence,) = re.findall(r"`moe-retrieval train`.*?\.\s", readme, re.DOTALL)
    listed = re.findall(r"^  (\w+) ", run("--help").stdout, re.MULTILINE)
    assert set(re.findall(r"(\w+)`", sentence)) == set(listed)


def test_a_command_gets_its_arguments():
    bad = run("search", "--index", "i", "--top-k", "0")
    assert (bad.returncode, bad.stderr.startswith("error: ")) == (2, True)
    assert "--top-k must be at least 1, got 0" in bad.stderr
    unknown = run("serve")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: expected a command, one of train, pretrain, evaluate, ")

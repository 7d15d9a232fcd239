"""The citation file is of this version, and has what the format asks for."""

import tomllib
from pathlib import Path

import yaml

import kernels

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert cited["version"] == kernels.__version__ == project["version"]
    assert cited["license"] == project["license"]
    assert cited["title"].startswith(project["name"])
    assert cited["cff-version"] == "1.2.0"
    for work in (cited, *cited["references"]):
        assert {"title", "type"} <= set(work)
        assert all("name" in author or "family-names" in author for author in work["authors"])

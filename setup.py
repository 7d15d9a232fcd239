"""Everything about this distribution stands in pyproject.toml; this file is where native code will be built."""

from setuptools import setup

setup()

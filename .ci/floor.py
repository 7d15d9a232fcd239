"""Installs this project, for its tests, into the environment that runs this, with the oldest versions that it allows.

pyproject.toml says which: what its dependencies ask for by >=. All else is as in constraints.txt, but for what goes
with those versions. torch is taken without its libraries for GPUs; where pip knows no such wheel of the oldest version,
the tested one is taken in its place, and that is said.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

GOES_WITH = {"tokenizers": "tokenizers", "numpy": "numpy<2.4"}
"""transformers chooses its tokenizers; the interpreter of triton 3.6 needs an older numpy."""


def install(*arguments: str, may_fail: bool = False) -> bool:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.DEVNULL if may_fail else None)
    if done.returncode and not may_fail:
        sys.exit(done.returncode)
    return not done.returncode


def oldest() -> dict[str, str]:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(match.groups() for each in required if (match := re.match(r"([\w-]+)>=([\d.]+)", each)))


def main() -> None:
    versions, tested = oldest(), (ROOT / "constraints.txt").read_text().splitlines()
    constraints = Path(sys.prefix) / "constraints.txt"
    (torch,) = (line for line in tested if line.startswith("torch=="))
    floor = f"torch=={versions['torch']}.0+cpu"  # a wheel without a GPU's libraries
    if install(floor, may_fail=True):
        torch = floor
    else:
        print(f"pip cannot install {floor}: {torch} is taken instead, with the triton that it asks for", flush=True)
        install(torch)
        del versions["triton"]
    kept = [line for line in tested if line.split("==")[0] not in {*versions, *GOES_WITH}]
    pinned = [f"{name}=={version}.*" for name, version in versions.items() if name != "torch"]
    constraints.write_text("\n".join([*kept, *pinned, *GOES_WITH.values(), torch]) + "\n")
    install("-c", str(constraints), "setuptools", "wheel", "ninja")
    install("-c", str(constraints), "--no-build-isolation", "-e", ".[cpu,offline,test]")


if __name__ == "__main__":
    main()

"""pyproject.toml says what this distribution is; here its C++ is compiled, if torch is there to compile for."""

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from kernels.cpu import build

try:
    import torch  # noqa: F401 -- only with --no-build-isolation, and then it is the one that will load the library
except ImportError:
    can_build = False
else:
    can_build = True


class BuildWithKernels(build_py):
    """Copies the packages and puts the library beside its sources. Without a compiler it is left to the first use."""

    def run(self):
        super().run()
        if not can_build:
            return
        folder = build.HERE if self.editable_mode else Path(self.build_lib) / "kernels" / "cpu"
        target = folder / build.prebuilt().name
        for other in folder.glob("moe_cpu-*.so"):
            if other != target:
                other.unlink()
        if target.exists():
            return
        try:
            build.compile_library(build.supported_levels(), target)
        except ImportError as error:
            print(f"the CPU kernels are not built now but at first use: {error}", file=sys.stderr)


class Platform(Distribution):
    """A wheel with a library in it is of one platform."""

    def has_ext_modules(self):
        return can_build


setup(cmdclass={"build_py": BuildWithKernels}, distclass=Platform)

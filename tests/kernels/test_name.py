"""Two packages are called `kernels`: ours, and Hugging Face's, which transformers looks for. Each case is a process.

Theirs is the real one where pip can get it, and a stand-in (other_kernels.py) that says to be of the same version, or
of one that the installed transformers accepts.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.kernels import other_kernels

ROOT = Path(__file__).parents[2]
REPAIR = "pip install --force-reinstall --no-deps moe-retrieval"


def python(code, *path, cwd, check=True, executable=sys.executable):
    """-> what a fresh interpreter with this PYTHONPATH prints, or what it says when it fails"""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [str(executable), "-c", code],
        cwd=cwd,
        env=variables | {"PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode == 0) == check, result.stdout + result.stderr
    return result.stdout if check else result.stderr


def pip(*arguments):
    pytest.importorskip("pip")
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


# The packages: folders with a `kernels` and its metadata, as they lie in a site-packages.


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    result = pip(
        "download", "--no-deps", "--timeout=10", "--retries=0", "--dest", folder, f"kernels=={other_kernels.VERSION}"
    )
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"pip cannot download kernels=={other_kernels.VERSION}: {result.stderr.strip().splitlines()[-1:]}")
    pytest.importorskip("yaml", reason="Hugging Face's kernels needs it")
    return unpack(wheels[0], folder / "site")


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """Of the oldest version that the installed transformers accepts."""
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    return other_kernels.write(tmp_path_factory.mktemp("stand_in"), KERNELS_MIN_VERSION)


@pytest.fixture(scope="session")
def same_version(tmp_path_factory):
    return other_kernels.write(tmp_path_factory.mktemp("same_version"), other_kernels.VERSION)


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.slow), "same_version"])
def of_that_version(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[pytest.param("real", marks=pytest.mark.slow), "stand_in"])
def theirs(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """A source checkout. Native code is another matter: the copy has none, and builds none."""
    folder = tmp_path_factory.mktemp("checkout") / "moe-retrieval"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.o", "build")
    for package in ("kernels", "moe_retrieval"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "setup.py").write_text("from setuptools import setup\n\nsetup()\n")
    return folder


@pytest.fixture(scope="session")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    result = pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, checkout)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("moe_retrieval-*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    return unpack(wheel, tmp_path_factory.mktemp("installed"))


def unpack(wheel, folder):
    """What installing a wheel does to a site-packages: a file that is there already is overwritten."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def add(package, folder):
    shutil.copytree(package, folder, dirs_exist_ok=True)
    return folder


def remove_theirs(folder):
    """What uninstalling does: the files in the record go, shared or not."""
    [record] = folder.glob("kernels-*.dist-info/RECORD")
    for line in record.read_text().splitlines():
        (folder / line.split(",")[0]).unlink(missing_ok=True)


# What must hold where ours is imported, and where it is not.

BOTH_WORK = """
import sys
import kernels
assert not {"torch", "transformers"} & set(sys.modules), "import kernels is light"
assert kernels.__version__ == "0.1.0"
from kernels import Device, get_kernel, kernelize          # theirs
import kernels.layer.mode
assert kernels.layer.Mode is kernels.layer.mode.Mode is kernels.Mode
assert {"MoE", "upcycle"} <= set(dir(kernels))
for name in ("no_such_name", "_private", "__wrapped__"):
    assert not hasattr(kernels, name)
layer = kernels.MoE(8, 16, num_experts=4, top_k=2)          # ours
import torch
with kernels.use_backend("eager"):
    assert layer(torch.randn(3, 8)).shape == (3, 8)
assert kernels.upcycling.export_state_dict
print(get_kernel.__code__.co_filename)
"""

WITH_TRANSFORMERS = """
import kernels, torch, transformers
from transformers.utils import is_kernels_available
from transformers.integrations import hub_kernels
import transformers.modeling_utils
config = dict(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
model = kernels.upcycle(transformers.BertModel(transformers.BertConfig(**config)), num_experts=2, top_k=1)
kernels.register_with_transformers()
config |= dict(num_key_value_heads=1, num_local_experts=2, experts_implementation="moe_kernels")
decoder = transformers.MixtralForCausalLM(transformers.MixtralConfig(**config))
with kernels.use_backend("eager"):
    assert model(torch.tensor([[1, 2]])).last_hidden_state.isfinite().all()
    assert decoder(torch.tensor([[1, 2]])).logits.isfinite().all()
print(is_kernels_available(), getattr(hub_kernels, "LayerRepository", None).__module__)
"""

OURS_IS_MISSING = """
import kernels
assert not hasattr(kernels, "MoE")
"""


def works(*path, cwd, **options):
    file = python(BOTH_WORK, *path, cwd=cwd, **options)
    assert file.strip().endswith(os.path.join("kernels", "load.py"))


def says_how_to_repair(*path, cwd, **options):
    """moe_retrieval cannot run: one line, with what to do."""
    error = python("import moe_retrieval", *path, cwd=cwd, check=False, **options).strip().splitlines()[-1]
    assert error.startswith("ImportError: ")
    assert REPAIR in error
    assert "PYTHONPATH" in error


def test_ours_first_from_a_source_checkout(theirs, checkout, tmp_path):
    works(checkout, theirs, cwd=tmp_path)
    works(theirs, cwd=checkout)  # `python -c` and `python -m` look in the current folder first


def test_ours_first_from_a_wheel(theirs, installed, tmp_path):
    works(installed, theirs, cwd=tmp_path)


def test_transformers_uses_theirs_through_ours(stand_in, installed, tmp_path):
    assert python(WITH_TRANSFORMERS, installed, stand_in, cwd=tmp_path).split() == ["True", "kernels.layer.layer"]


def test_transformers_does_not_want_this_version_of_theirs(of_that_version, installed, tmp_path):
    accepted = "import transformers; print(transformers.utils.is_kernels_available())"
    if python(accepted, of_that_version, cwd=tmp_path).split() == ["True"]:
        pytest.skip(f"the installed transformers wants kernels {other_kernels.VERSION}")
    assert python(
        f"{accepted}\nimport kernels; print(kernels.MoE.__name__)", installed, of_that_version, cwd=tmp_path
    ).split() == [
        "False",
        "MoE",
    ]


def test_ours_alone(installed, tmp_path):
    code = "import kernels, transformers; print(transformers.utils.is_kernels_available(), kernels.MoE.__name__)"
    assert python(code, installed, cwd=tmp_path).split() == ["False", "MoE"]
    error = python("from kernels import get_kernel", installed, cwd=tmp_path, check=False)
    assert "cannot import name 'get_kernel' from 'kernels'" in error


def test_theirs_first(theirs, installed, tmp_path):
    python(OURS_IS_MISSING, theirs, installed, cwd=tmp_path)
    says_how_to_repair(theirs, installed, cwd=tmp_path)


def test_theirs_first_with_transformers(stand_in, installed, tmp_path):
    accepted = "import transformers; print(transformers.utils.is_kernels_available(), transformers.BertModel.__name__)"
    assert python(accepted, stand_in, installed, cwd=tmp_path).split() == ["True", "BertModel"]


def test_one_site_packages_ours_last(theirs, wheel, tmp_path):
    site = unpack(wheel, add(theirs, tmp_path / "site"))
    works(site, cwd=tmp_path)


def test_one_site_packages_ours_last_with_transformers(stand_in, wheel, tmp_path):
    site = unpack(wheel, add(stand_in, tmp_path / "site"))
    assert python(WITH_TRANSFORMERS, site, cwd=tmp_path).split() == ["True", "kernels.layer.layer"]


def test_one_site_packages_theirs_last(theirs, wheel, tmp_path):
    site = add(theirs, unpack(wheel, tmp_path / "site"))
    python(OURS_IS_MISSING, site, cwd=tmp_path)
    says_how_to_repair(site, cwd=tmp_path)
    unpack(wheel, site)  # the second half of the repair; without the first, both work
    works(site, cwd=tmp_path)


def test_one_site_packages_after_theirs_is_uninstalled(theirs, wheel, tmp_path):
    site = add(theirs, unpack(wheel, tmp_path / "site"))
    remove_theirs(site)
    assert not (site / "kernels" / "__init__.py").exists()
    says_how_to_repair(site, cwd=tmp_path)
    unpack(wheel, site)
    python("import kernels, moe_retrieval; kernels.MoE", site, cwd=tmp_path)


@pytest.mark.slow
def test_editable_install(stand_in, checkout, tmp_path):
    """An editable install is found after everything in site-packages, so theirs wins there until it is gone."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    executable = venv / "bin" / "python"
    site = Path(
        python("import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path, executable=executable).strip()
    )
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    arguments = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--editable", checkout)
    result = pip("--python", executable, *arguments)
    assert result.returncode == 0, result.stderr
    python("import kernels, moe_retrieval; kernels.MoE", cwd=tmp_path, executable=executable)
    add(stand_in, site)
    python(OURS_IS_MISSING, cwd=tmp_path, executable=executable)
    says_how_to_repair(cwd=tmp_path, executable=executable)
    works(checkout, cwd=tmp_path, executable=executable)  # one repair: PYTHONPATH
    remove_theirs(site)  # the other
    shutil.rmtree(site / "kernels")
    python("import kernels, moe_retrieval; kernels.MoE", cwd=tmp_path, executable=executable)


def test_an_import_error_of_theirs_is_theirs(stand_in, installed, tmp_path):
    site = add(stand_in, tmp_path / "broken")
    (site / "kernels" / "load.py").write_text("import a_package_that_is_missing\n")
    for _ in range(2):
        error = python("from kernels import get_kernel", installed, site, cwd=tmp_path, check=False)
        assert re.search(
            r"looked for in Hugging Face's package .*broken.* No module named 'a_package_that_is_missing'", error
        )
    code = """
import kernels
for _ in range(2):
    try:
        kernels.get_kernel
    except ImportError as error:
        print("again" if "a_package_that_is_missing" in str(error) else error)
kernels.MoE, kernels.upcycling.from_pretrained, kernels.route      # ours never ask there
"""
    assert python(code, installed, site, cwd=tmp_path).split() == ["again", "again"]


def test_the_stand_in_is_laid_out_like_the_real_one(real, same_version):
    assert other_kernels.modules(same_version) == other_kernels.modules(real)
    assert other_kernels.names(same_version) == other_kernels.names(real)


def test_no_module_of_ours_has_a_name_of_theirs(of_that_version):
    theirs = {name for name in other_kernels.modules(of_that_version) if name.count("/") == 1} - {"kernels/__init__"}
    ours = {f"kernels/{path.name.split('.')[0]}" for path in (ROOT / "kernels").iterdir()} - {"kernels/__init__"}
    assert {"kernels/layer", "kernels/load"} <= theirs
    assert not ours & theirs

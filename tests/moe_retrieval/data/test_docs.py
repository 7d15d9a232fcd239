"""Documentation read from source: what becomes a pair, under which name; the real packages as a collection."""

import importlib.metadata
import textwrap

import pytest

from moe_retrieval import data
from moe_retrieval.data import docs, docstrings
from moe_retrieval.data.jsonl import hash_split

PACKAGE = {
    "__init__.py": "from ._private import shown\nfrom .deep import *\n",
    "_private/__init__.py": "from .inner import shown, renamed as _hidden\n",
    "_private/inner.py": '''
        def shown(x):
            """Shows a thing. More of the first paragraph.

            Parameters
            ----------
            x : the thing to show, of any kind
            """

        def elsewhere():
            """Lies in a private module.

            It is listed under the package that holds the module."""
    ''',
    "deep/__init__.py": "from .er import Thing\n",
    "deep/er.py": '''
        class Thing:
            """A :class:`~some.Thing` with ``markup`` in `it`

            and more text in the next paragraph."""

            def method(self):
                """method(self) -> Thing

                Does what methods do.

                Args:
                    none of them at all
                """

            def _private(self):
                """Is not for the public.

                Whatever it may say here."""

        if True:
            def conditional():
                """Defined under a condition:

                e.g. for one platform. And so on."""

        def short():
            """Too short to be a pair."""

        def parameters():
            """name (`str`): is no summary, but what a generator left.

            There is more of it here."""
    ''',
    "tests/test_it.py": 'def helper():\n    """Is a test helper.\n\n    It must not be read, ever."""\n',
    "broken.py": "def f(:\n",
}


def write_package(root, files):
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(source))


def test_a_package(tmp_path):
    write_package(tmp_path, PACKAGE)
    found = {doc.name: doc for doc in docstrings.of_package(tmp_path, "box")}
    assert set(found) == {"box.shown", "box.elsewhere", "box.Thing", "box.Thing.method", "box.deep.er.conditional"}
    assert found["box.shown"].summary == "Shows a thing."
    assert found["box.shown"].rest.startswith("More of the first paragraph.\n\nParameters")
    assert found["box.Thing"].summary == "A some.Thing with markup in it"
    assert found["box.Thing.method"].summary == "Does what methods do."
    assert found["box.Thing.method"].rest.startswith("method(self) -> Thing\n\nArgs:")


def test_operators_documented_by_calls():
    source = textwrap.dedent(
        '''
        common = merge_dicts(
            parse_kwargs("""
            input (Tensor): the input tensor.
            dim (int): a dimension,
                and more of it
            """),
            {"note": "A note."},
        )
        other = parse_kwargs("""
            dim (int): another dimension
        """)
        add_docstr(torch.sort, r"""
        sort(input, dim=-1) -> (Tensor, LongTensor)

        Sorts the elements. Uses {{braces}}

        Args:
            {input}
            {dim}
            {unknown}
        """.format(**common) + "tail of it")
        add_docstr(torch._C._hidden, "Hides something.\\n\\nWhich nobody ought to find.")
        add_docstr_all("sort", """
        sort(dim=-1) -> Tensor

        See the function.

        {dim} and several more words
        """.format(**other))
        entr = _add_docstr(_special.special_entr, """
        entr(input, *, out=None) -> Tensor
        Computes the entropy.

        Of several words, elementwise, always.
        """)
        add_newdoc("numpy._core.multiarray", "ndarray", ("sort", """
        a.sort(axis=-1, kind=None)

        Sorts in place.

        Which saves memory, for some arrays.
        """))
        _array_method_doc("tolist", "", """
        Return a list.

        Of the elements, nested as deep as the array.
        """)
        computed = helper("of" + 1)
        '''
    )
    found = {doc.name: doc for doc in docstrings.of_source(source.encode(), "torch.special", docstrings.PublicNames())}
    assert set(found) == {
        "torch.sort",
        "torch.Tensor.sort",
        "torch.special.entr",
        "numpy.ndarray.sort",
        "numpy.ndarray.tolist",
    }
    assert found["torch.sort"].summary == "Sorts the elements."
    rest = found["torch.sort"].rest
    assert rest.startswith("sort(input, dim=-1) -> (Tensor, LongTensor)\n\nUses {braces}")
    assert "dim (int): a dimension,\n    and more of it" in rest
    assert "unknown" in rest
    assert rest.endswith("tail of it")
    assert "another dimension" in found["torch.Tensor.sort"].rest
    assert found["numpy.ndarray.tolist"].rest.startswith("tolist()\n\nOf the elements")
    assert found["torch.special.entr"].summary == "Computes the entropy."


def test_pairs_of_a_folder(tmp_path):
    body = "\n\n    And these are the words that follow."
    boilerplate = "".join(f'def f{i}():\n    """Says nothing new.{body}"""\n' for i in range(6))
    shared = "".join(f'def g{i}():\n    """Is said twice.{body}"""\n' for i in range(2))
    write_package(
        tmp_path / "box", {"__init__.py": boilerplate + shared + f'def h():\n    """Is said once.{body}"""\n'}
    )
    (tmp_path / "out").mkdir()
    docs.write({"box": tmp_path / "box"}, tmp_path / "out")
    collection = data.load(tmp_path / "out")
    assert [name for name, _ in collection.documents] == ["box.g0", "box.g1", "box.h"]
    assert collection.documents[2][1] == "box.h And these are the words that follow."
    assert collection.documents.record(2)["metadata"] == {"domain": "box"}
    assert collection.documents.domain(2) == "box"
    answers = {
        collection.all_queries[query]: set(judged)
        for split in collection.splits
        for query, judged in collection.qrels(split).items()
    }
    assert answers == {"Is said twice.": {"box.g0", "box.g1"}, "Is said once.": {"box.h"}}
    for split in collection.splits:
        assert all(hash_split(text) == split for text in collection.queries(split).values())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_RETRIEVAL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(docs, "PACKAGES", ("stdlib", "torch", "numpy", "a_package_that_is_not_there"))
        yield docs.load(docs.PACKAGES), docs.load(docs.PACKAGES)


@pytest.mark.slow
def test_installed_packages(installed):
    collection, again = installed
    assert again.fingerprint == collection.fingerprint
    assert set(collection.splits) == {"train", "dev", "test"}
    assert 5000 < len(collection.documents) < 20000
    assert 15 < len(collection.qrels("train")) / len(collection.qrels("test")) < 22
    names = {"torch.sort", "torch.Tensor.new_tensor", "torch.nn.Linear", "numpy.sort", "json.dumps", "numpy.array"}
    assert {name for name in names if collection.documents.row(name) is None} == set()
    torch_version = importlib.metadata.version("torch")
    assert docs.find_packages(("torch",))["torch"][1] == torch_version

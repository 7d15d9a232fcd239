"""Flags, files and presets are one thing."""

import select
import shlex
import subprocess
import sys
from dataclasses import asdict, fields, replace

import pytest
import torch
import yaml

from moe_retrieval import cli
from moe_retrieval import config as configs
from moe_retrieval.config import TrainConfig
from moe_retrieval.errors import InputError
from moe_retrieval.index import IndexConfig
from moe_retrieval.presets import PRESETS
from moe_retrieval.search import SearchConfig

CONTRACT = """--dataset --data-dir --model --variant --control-of --num-experts --top-k --layers --expert-size --router
--gate --noise --combine --renormalize --activation --aux-coef --z-coef --output-dir --epochs --max-steps --batch-size
--chunk-size --grad-accum --lr --expert-lr --weight-decay --clip --schedule --warmup --precision --dropout --loss
--temperature --margin --negatives --num-negatives --query-length --doc-length --query-prompt --doc-prompt --pooling
--normalize --eval-every --save-every --patience --seed --resume --backend --no-eval --hidden --num-layers --heads --ff
--vocab-size --tokenizer --train --train-queries --gradient-checkpointing --keep --keep-checkpoints"""


FLAGS_OF_PRESETS = {name: preset.flags for name, preset in PRESETS.items()}


def parse(*arguments):
    return cli.parse(TrainConfig, arguments, "train", FLAGS_OF_PRESETS)


def test_every_promised_flag_is_there_and_has_a_word_of_help(capsys):
    assert {"--" + field.name.replace("_", "-") for field in fields(TrainConfig)} >= set(CONTRACT.split())
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for flag in (*CONTRACT.split(), "--config", "--preset"):
        assert flag in shown
    assert "(default: 5e-05)" in shown


def test_a_saved_config_is_fed_back_whole(tmp_path):
    given = parse(
        "--variant", "moe", "--top-k", "all", "--layers", "0,2", "--query-prompt", "query: ", "--doc-prompt", "",
        "--noise", "False", "--lr", "3e-6", "--no-eval", "--data-dir", "None", "--expert-lr", "1e-3",
    )  # fmt: skip
    assert (given.top_k, given.layers, given.query_prompt, given.doc_prompt) == ("all", "0,2", "query: ", "")
    assert (given.noise, given.lr, given.no_eval, given.data_dir) == (False, 3e-6, True, None)
    configs.save(given, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == asdict(given)
    assert parse("--config", str(tmp_path / "config.yaml")) == given
    assert parse(f"--config={tmp_path}/config.yaml", "--lr", "1").lr == 1


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    (tmp_path / "c.yaml").write_text("batch-size: 7\nlr: 1e-3\n")
    merged = parse("--lr", "2", "--config", str(tmp_path / "c.yaml"), "--preset", "sb-moe-paper")
    assert (merged.lr, merged.batch_size, merged.expert_lr, merged.epochs) == (2, 7, 1e-4, 30)


SAID = {
    "sb-moe-paper": dict(
        variant="sb-moe", model="tinybert", num_experts=6, top_k=1, combine="normalized", aux_coef=0.0, batch_size=64,
        lr=1e-6, expert_lr=1e-4, schedule="constant", warmup=0.0, clip=0.0, epochs=30, temperature=1.0, normalize=False,
        pooling="mean", query_length=256, doc_length=256, negatives="in-batch", keep="last", precision="fp32",
    ),
    "ucsd": dict(
        variant="moe", num_experts=8, top_k=2, epochs=20, lr=5e-5, expert_lr=5e-5, negatives="bm25", num_negatives=1,
        pooling="cls", precision="fp16",
    ),
    "from-scratch": dict(
        variant="moe", model="scratch", hidden=256, num_layers=6, heads=8, ff=1024, vocab_size=10_000, dropout=0.1,
        lr=1e-3, expert_lr=1e-3, schedule="cosine", epochs=20, num_experts=8, top_k=2,
    ),
}  # fmt: skip
"""By hand, from the papers' text and code, and from what was asked for."""


@pytest.mark.parametrize("preset", SAID)
def test_the_presets_say_what_they_should(preset):
    given = parse("--preset", preset)
    given.check()
    assert {name: getattr(given, name) for name in SAID[preset]} == SAID[preset]
    assert parse("--preset", preset, "--model", "minilm").model == "minilm"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("variant", ["dense", "sb-moe", "moe", "dense-wide", "random"])
def test_a_preset_goes_with_any_variant(preset, variant, tmp_path):
    """Its experts with the variant that they are of; the rates of the backbone with all."""
    given = parse("--preset", preset, "--variant", variant)
    given.check()
    of_all = {name: value for name, value in SAID[preset].items() if name not in (*configs.OF_EXPERTS, "variant")}
    assert {name: getattr(given, name) for name in of_all} == of_all
    assert given.variant == variant
    own = SAID[preset]["variant"]
    assert given.num_experts == (SAID[preset]["num_experts"] if variant in (own, "dense-wide", "random") else None)
    assert given.control_of == (own if variant in ("dense-wide", "random") else None)
    (tmp_path / "c.yaml").write_text(f"variant: {variant}\n")
    assert parse("--config", str(tmp_path / "c.yaml"), f"--preset={preset}") == given


@pytest.mark.parametrize(
    "model, epochs, temperature",
    [("huawei-noah/TinyBERT_General_6L_768D", 30, 1.0), ("bert-base-uncased", 20, 1.0), ("contriever", 20, 0.05)],
)
def test_a_preset_knows_what_the_paper_does_otherwise_with_a_backbone(model, epochs, temperature):
    given = parse("--preset", "sb-moe-paper", "--model", model)
    assert (given.model, given.epochs, given.temperature) == (model, epochs, temperature)
    assert parse("--preset", "sb-moe-paper", f"--model={model}", "--epochs", "3").epochs == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("--warmup", "2"), "--warmup is a share of the steps, 0 to 1, got 2.0"),
        (("--variant", "sparse"), "invalid choice 'sparse' for argument '--variant'"),
        (("--learning-rate", "1"), "Unrecognized options: --learning-rate, 1"),
        (("--lr",), "Missing value for argument '--lr'"),
        (("--preset", "best"), "--preset must be one of sb-moe-paper, ucsd, from-scratch; got 'best'"),
        (("--preset",), "--preset needs a value"),
        (("--config", "/nowhere.yaml"), "--config: cannot read /nowhere.yaml"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(*arguments).check()
    assert "\n" not in str(caught.value)


FLOATS = ["lr", "expert_lr", "weight_decay", "clip", "warmup", "dropout", "temperature", "margin", "aux_coef", "z_coef"]
FLOATS += ["drop_upcycling"]


def test_no_float_is_forgotten():
    assert {field.name for field in fields(TrainConfig) if "float" in str(field.type)} == set(FLOATS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number_is_refused(name, value, tmp_path):
    message = f"^--{name.replace('_', '-')} must be a finite number, got {value}$"
    with pytest.raises(InputError, match=message):
        replace(TrainConfig(), **{name: value}).check()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({name: value}))
    with pytest.raises(InputError, match=message):
        parse("--config", str(tmp_path / "c.yaml")).check()


def test_a_required_flag_and_what_a_config_refuses_are_named_too():
    with pytest.raises(InputError, match=r"^Missing options: --model, --corpus, --output-dir \(see index --help\)$"):
        cli.parse(IndexConfig, ["--kind", "ivf"], "index")
    with pytest.raises(InputError, match=r"^--top-k must be at least 1, got 0 \(see search --help\)$"):
        cli.parse(SearchConfig, ["--index", "i", "--top-k", "0"], "search")


GENPOE = ("download", "retrieve", "prepare", "train_reranker", "rerank", "train", "generate", "answer", "evaluate",
          "facts", "train_decoder", "experiment")  # fmt: skip
OF_GENPOE = tuple(f"genpoe.{name}" for name in GENPOE)
HELPS = ("train", "pretrain", "evaluate", "analyze", "report", "index", "search", "triplets", "similarity",
         "classification", *OF_GENPOE)  # fmt: skip

QUICK = """
import sys, importlib
try:
    importlib.import_module("moe_retrieval." + sys.argv[1]).main(sys.argv[2:])
except Exception as error:
    print(error)
except SystemExit:
    pass
print("imported", *({"torch", "transformers", "faiss", "numpy"} & set(sys.modules)))
"""


def quick(*arguments):
    """-> what a command prints; it must not have imported what takes seconds."""
    out = subprocess.run([sys.executable, "-c", QUICK, *arguments], capture_output=True, text=True, check=False)
    assert out.stdout.splitlines()[-1] == "imported", out.stderr
    return " ".join(out.stdout.split())


@pytest.mark.parametrize("command", HELPS)
def test_help_comes_at_once_and_says_what_a_flag_is_where_it_is_not_given(command):
    shown = quick(command, "--help")
    assert "{None}" not in shown
    assert "(default: None)" not in shown
    assert "None is" not in shown
    assert "(default: )" not in shown


def test_help_names_the_defaults_of_the_backbone(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert (
        "--pooling {mean,cls,max,mean-max} How an embedding is made of the tokens. (default: the backbone's own, mean"
        in shown
    )
    assert "--top-k INT|{all} Experts of a token. (default: 1 for sb-moe, 2 for moe)" in shown
    assert "--data-dir STR Where data sets lie by name, besides $MOE_RETRIEVAL_DATA. (default: none)" in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train --variant dense --top-k 2", "--variant dense has no experts; it cannot take top_k"),
        ("train --control-of moe", "--control-of goes with --variant dense-wide or random, got --variant sb-moe"),
        ("train --layers all", "--layers is for --variant moe"),
        ("train --variant moe --combine normalized", "--combine is for --variant sb-moe"),
        ("train --variant dense --aux-coef 0.1", "--variant dense has no experts; it cannot take aux_coef"),
        (
            "train --drop-upcycling 0.5",
            "--drop-upcycling is for --variant moe: experts after the pooling are no copies",
        ),
        ("train --variant moe --drop-upcycling 2", "--drop-upcycling is a share of the inner units, 0 to 1, got 2.0"),
        (
            "train --variant moe --model scratch --drop-upcycling 0.5",
            "--drop-upcycling needs a backbone to draw from: expected --model other than scratch",
        ),
        ("train --variant dense --train experts", "--train experts: --variant dense has none"),
        ("train --keep last --patience 3", "--patience is for --keep best: what it waits for is a better model"),
        ("train --eval-every 2x", "--eval-every is a number of steps, or of epochs like 1e or 0.5e, got '2x'"),
        ("train --save-every=-1", "--save-every must be at least 0, got -1"),
        ("train --dataset docs,docs", "--dataset: docs comes twice"),
        ("train --model scratch --negatives mined", "--negatives mined needs a backbone"),
        ("train --negatives bm25 --num-negatives 0", "--negatives bm25 needs --num-negatives of at least 1, got 0"),
        (
            "train --model runs/a --output-dir ./runs/a",
            "--model runs/a would be overwritten: give another --output-dir",
        ),
        ("search --index i --interactive why", "a question, --queries and --interactive exclude each other"),
        ("index --model m --corpus c --output-dir o --hnsw-links 99999999", "--hnsw-links must be at most 512, got 99"),
        ("index --model m --corpus c --output-dir o --ivf-probes 0", "--ivf-probes must be at least 1, got 0"),
        ("index --model m --corpus c --output-dir o --max-tokens 0", "--max-tokens must be at least 1, got 0"),
        ("evaluate --model m --dataset d --max-tokens -1", "--max-tokens must be at least 1, got -1"),
        ("analyze --model m --output-dir o --removals -1", "--removals must be at least 0, got -1"),
        ("report --queries -1", "--queries must be at least 0, got -1"),
        ("classification --model m --k 0", "--k must be at least 1, got 0"),
        ("triplets --output out.txt", "--output must end in .jsonl, got out.txt"),
        ("triplets --output out.jsonl --num-negatives 0", "--num-negatives must be at least 1, got 0"),
        (
            "genpoe.retrieve --model m --passages p --questions q --output o --shard-size 0",
            "--shard-size must be at least 1",
        ),
        (
            "genpoe.train_reranker --model m --data d --output-dir o --lora-alpha 8",
            "--lora-alpha goes with --lora-rank",
        ),
        (
            "genpoe.train --model m --data d --output-dir o --layers 1,b",
            "--layers must be numbers like 11 or 9,11, got",
        ),
        ("genpoe.train --model m --data d --output-dir o --rank 0", "--rank must be at least 1, got 0"),
        ("genpoe.train_decoder --data d --output-dir o --layers 0", "--layers must be at least 1, got 0"),
        ("genpoe.experiment --seeds 0", "--seeds must be at least 1, got 0"),
        (
            "genpoe.train --model m --data d --output-dir o --in-prompt 3",
            "--in-prompt must be at most --passages, which is 1",
        ),
        ("genpoe.answer --model m --input i --output o --passages -1", "--passages must be at least 0, got -1"),
        (
            "genpoe.answer --model m --input i --output o --passages 0 --experts e",
            "--experts goes with --passages, which is 0",
        ),
        ("genpoe.generate --model m --input i --output-dir o --passages 0", "--passages must be at least 1, got 0"),
    ],
)
def test_flags_that_do_not_go_together_are_told_before_anything_is_loaded(arguments, message):
    assert message in quick(*arguments.split())


def test_text_may_begin_with_a_dash():
    given = parse("--query-prompt", "- ask: ", "--doc-prompt=--", "--seed", "3")
    assert (given.query_prompt, given.doc_prompt, given.seed) == ("- ask: ", "--", 3)
    with pytest.raises(InputError, match="--query-prompt"):
        parse("--query-prompt", "--seed", "3")
    with pytest.raises(
        InputError, match=r"Unrecognized options: -v of make; -- goes before text that begins with a dash"
    ):
        cli.parse(SearchConfig, ["--index", "i", "-v of make"], "search")
    asked = cli.parse(SearchConfig, ["--index", "i", "--", "-v", "of", "make"], "search")
    assert asked.question == ("-v", "of", "make")


@pytest.mark.parametrize("words", [("--config", "of", "pytest"), ("--preset=x",), ("--index", "-v"), ("a", "--", "-h")])
def test_after_two_dashes_everything_is_the_question(words):
    asked = cli.parse(SearchConfig, ["--index", "i", "--", *words], "search", FLAGS_OF_PRESETS)
    assert (asked.index, asked.question) == ("i", words)


@pytest.mark.parametrize("value, read", [("7", 7), ("1e", "1e"), ("0.5e", "0.5e"), ("0", 0)])
def test_an_interval_is_steps_or_epochs(value, read, tmp_path):
    given = parse("--save-every", value)
    assert given.save_every == read
    given.check()
    configs.save(given, tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == given


def test_a_saved_prompt_may_begin_with_a_dash(tmp_path):
    given = parse("--query-prompt=- ", "--doc-prompt=--doc: ")
    configs.save(given, tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == given


def test_a_line_is_out_at_once_also_in_a_pipe():
    code = "import time; from moe_retrieval.cli import run_command; run_command(lambda _: (print('x'), time.sleep(60)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        ready, _, _ = select.select([process.stdout], [], [], 30)
        process.kill()
    assert ready


def test_a_reader_that_has_enough_is_no_error():
    command = f"{sys.executable} -m moe_retrieval.train --help | head -1"
    out = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert out.stdout.startswith("usage: ")
    assert out.stderr == ""


def test_a_file_with_an_unknown_flag_or_a_wrong_value_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1\n")
    with pytest.raises(InputError, match=r"c\.yaml: no flag is called learning_rate; expected some of activation"):
        parse("--config", str(path))
    path.write_text("no_eval: maybe\n")
    with pytest.raises(InputError, match="no_eval must be true or false, got 'maybe'"):
        parse("--config", str(path))
    path.write_text("- 1\n")
    with pytest.raises(InputError, match="must hold a mapping of flags to values, got list"):
        parse("--config", str(path))
    path.write_text("lr: fast\n")
    with pytest.raises(InputError, match="--lr: could not convert string to float: 'fast'"):
        parse("--config", str(path))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"output_dir: null\n", "output_dir must have a value, got none"),
        (b"dataset:\n", "dataset must have a value, got none"),
        (b"lr: ~\n", "lr must have a value, got none"),
        (b"lr: [1, 2]\n", "lr must be one value, got a list"),
        (b"model: {a: 1}\n", "model must be one value, got a dict"),
        (b"seed: " + b"9" * 10_000, "cannot read .*: Exceeds the limit"),
        (b"[" * 100_000, "cannot read .*: nested too deeply"),
        (b"lr: \xff\n", "cannot read .*: "),
        (b"a: &a [x]\nlr: [*a, *a]\n", "no flag is called a"),
    ],
    ids=lambda value: repr(value[:15]),
)
def test_a_file_with_a_value_that_is_none_is_refused(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        parse("--config", str(path))
    assert "\n" not in str(caught.value)


def test_none_is_a_value_where_a_flag_may_be_none(tmp_path):
    (tmp_path / "c.yaml").write_text("query_prompt: null\nmax_steps: null\nquery_prompt: --lr\n")
    assert parse("--config", str(tmp_path / "c.yaml")).query_prompt == "--lr"


@pytest.mark.parametrize("name", ["seed", "max_steps", "batch_size", "num_layers", "vocab_size"])
def test_numbers_that_no_run_can_count_to_are_refused(name):
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} must be at most [0-9]+, got 1000000000000"):
        replace(TrainConfig(), **{name: 10**30}).check()


def fail(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    "error, said",
    [
        (OSError(28, "No space left on device", "runs/x"), "error: runs/x: No space left on device\n"),
        (OSError(30, "Read-only file system"), "error: Read-only file system\n"),
        (MemoryError(), "error: not enough memory\n"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you\ntried"),
            "error: not enough memory",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line_and_status_1(error, said, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command(fail(error))
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    "message",
    ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory", "not enough memory: you tried"],
)
def test_no_memory_of_any_device_is_one_line(message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run_command(fail(RuntimeError(message)))
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"error: not enough memory: {message}\n"


def test_what_torch_calls_no_memory_is_told_by_its_type(capsys):
    with pytest.raises(SystemExit):
        cli.run_command(fail(torch.OutOfMemoryError("XPU has no room")))
    assert capsys.readouterr().err == "error: not enough memory: XPU has no room\n"


@pytest.mark.parametrize(
    "message",
    ["ours", "CUDA error: an illegal memory access was encountered", "unsupported memory format", "shared memory: 1"],
)
def test_a_mistake_of_ours_is_no_bad_input(message):
    with pytest.raises(RuntimeError, match=message):
        cli.run_command(fail(RuntimeError(message)))


@pytest.mark.parametrize(
    "command, status, left",
    [
        ("--help >&-", 0, ""),
        ("--version <&- >&- 2>&-", 0, ""),
        ("nonsense 2>&-", 2, ""),
        ("nonsense >&-", 2, "error: expected a command, one of "),
    ],
)
def test_a_closed_stream_is_no_crash_and_another_does_not_get_its_text(command, status, left):
    out = subprocess.run(
        f"{sys.executable} -m moe_retrieval {command}", shell=True, capture_output=True, text=True, check=False
    )
    assert out.returncode == status
    assert (out.stdout + out.stderr).startswith(left)
    assert bool(out.stdout + out.stderr) == bool(left)


def test_what_a_command_opens_does_not_get_the_number_of_a_closed_stream():
    """Else what goes to standard error by its number, as a C library does, ends in that file."""
    code = (
        "import sys; from moe_retrieval.cli import run_command;"
        "run_command(lambda _: sys.exit(10 * open('/dev/zero').fileno() + len(sys.stdin.read())))"
    )
    command = f"{sys.executable} -c {shlex.quote(code)} <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, check=False).returncode >= 30


def test_a_command_ends_with_status_2_and_one_line_where_input_is_bad():
    command = [sys.executable, "-m", "moe_retrieval.train", "--model", "nonsense", "--dataset", "/nowhere/at/all"]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 2
    (line,) = out.stderr.strip().splitlines()
    assert line.startswith("error: ")

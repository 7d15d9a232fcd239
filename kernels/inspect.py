"""Compiles every Triton kernel ahead of time, without a GPU, and prints what became of it.

    python -m kernels.inspect                        every configuration for sm_80, sm_89, sm_90 and sm_100
    python -m kernels.inspect --arch sm_90 --quick   a subset, for one target
    python -m kernels.inspect --arch gfx942          reported only: no limit is enforced there
    python -m kernels.inspect --arch sm_90 --quick --output docs/compiled.md

No configuration is listed here: the primitives themselves run on meta tensors over a grid of sizes, and what they would
launch is compiled. Exit status 1 if a kernel does not compile, spills registers, needs more shared memory than its
target has, or multiplies 16-bit matrices without tensor cores. Results are kept under the user's cache directory, by a
hash of source, configuration, target and Triton version.

Where a target has little shared memory (sm_89: 99 KB), kernels are compiled with as many stages as fit, as `gpu.launch`
would have it.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from kernels.gpu.launch import Launch

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_89": ("cuda", 89, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
FEWER_STAGES = ("sm_89",)
"""Targets that the tiles were not chosen for: L4, L40, RTX 4090; sm_86 and sm_120 have as little."""
TENSOR_CORE = re.compile(r"\b(mma(?=\.sync)|wgmma(?=\.mma_async)|tcgen05(?=\.mma)|v_mfma)")
POINTERS = {
    "torch.float32": "*fp32",
    "torch.float16": "*fp16",
    "torch.bfloat16": "*bf16",
    "torch.int32": "*i32",
    "torch.int64": "*i64",
    "torch.bool": "*i1",
}
OPERANDS = {
    "_up_kernel": ("p_w",),
    "_down_kernel": ("p_w",),
    "_down_backward_kernel": ("p_w",),
    "_up_backward_kernel": ("p_w",),
    "_stacked_kernel": ("p_w",),
    "_weight_grad_kernel": ("p_grad",),
    "_gate_kernel": ("p_x", "p_hidden_w", "p_w"),
    "_hidden_backward_kernel": ("p_x", "p_hidden_w"),
    "_attention_kernel": ("p_q",),
    "_grad_q_kernel": ("p_q",),
    "_grad_kv_kernel": ("p_q",),
}
"""Which arguments decide in which type a kernel multiplies: tensor cores are due if all are of one 16-bit type."""


class Job(NamedTuple):
    """One kernel in one configuration for one target: all that decides what the compiler makes of it."""

    module: str
    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int
    max_registers: int
    arch: str


class Report(NamedTuple):
    """What the compiler made of it."""

    registers: int
    spills: int
    """Bytes of stack: registers that did not fit."""
    shared: int
    tensor_cores: int
    """Instructions."""
    error: str = ""
    stages: int = 0
    """That it was compiled with."""
    instruction: str = ""
    """Of the tensor cores: wgmma, mma."""


def job_of(launch: "Launch", arch: str) -> Job:
    """What would be launched -> what would be compiled."""
    signature, constants = {}, dict(launch.constants)
    for parameter, argument in zip(launch.kernel.params, launch.arguments):
        if argument is None:
            constants[parameter.name] = None
        elif isinstance(argument, int):
            signature[parameter.name] = parameter.annotation_type or "i32"
        elif isinstance(argument, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = POINTERS[str(argument.dtype)]
    function = launch.kernel.fn
    return Job(
        function.__module__,
        function.__name__,
        tuple(signature.items()),
        tuple(sorted(constants.items())),
        launch.num_warps,
        launch.num_stages,
        launch.max_registers,
        arch,
    )


def compile_job(job: Job) -> Report:
    """With fewer stages, if the target needs that."""
    report = _compile(job)
    while job.arch in FEWER_STAGES and report.shared > SHARED_LIMIT[job.arch] and job.num_stages > 1:
        job = job._replace(num_stages=job.num_stages - 1)
        report = _compile(job)
    return report


def _compile(job: Job) -> Report:
    """Runs the compiler, which leaves its files in a directory that is gone afterwards."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(import_module(job.module), job.kernel)
    constants, types = dict(job.constants), dict(job.signature)
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned: Any = {
        (index,): [["tt.divisibility", 16]] for index, kind in enumerate(signature.values()) if kind.startswith("*")
    }
    backend, arch, warp = TARGETS[job.arch]
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages}
    if job.max_registers and backend == "cuda":
        options["maxnreg"] = job.max_registers
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        source = ASTSource(kernel, signature, constants, aligned)
        compiled = triton.compile(source, target=GPUTarget(backend, arch, warp), options=options)
        report = _read_amd(compiled) if backend == "hip" else _read_nvidia(compiled, Path(folder) / "kernel.cubin")
        return report._replace(stages=job.num_stages)


def _read_nvidia(compiled: Any, cubin: Path) -> Report:
    """Spilled registers show as STACK: LOCAL stays 0 even where kilobytes are spilled."""
    import triton

    cubin.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    report = Report(int(found["REG"]), int(found["STACK"]), compiled.metadata.shared, 0)
    return _with_tensor_cores(report, compiled.asm["ptx"])


def _read_amd(compiled: Any) -> Report:
    assembly = compiled.asm["amdgcn"]
    found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", assembly))
    spills = 4 * int(found["vgpr_spill_count"])
    return _with_tensor_cores(Report(int(found["vgpr_count"]), spills, compiled.metadata.shared, 0), assembly)


def _with_tensor_cores(report: Report, assembly: str) -> Report:
    names = TENSOR_CORE.findall(assembly)
    return report._replace(tensor_cores=len(names), instruction=" and ".join(sorted(set(names))))


def breach(job: Job, report: Report) -> str:
    """Which limit a kernel breaks, or nothing."""
    if report.error:
        return "does not compile"
    if job.arch not in SHARED_LIMIT:
        return ""
    if report.spills:
        return f"spills {report.spills} bytes"
    if report.shared > SHARED_LIMIT[job.arch]:
        return f"shared memory over {SHARED_LIMIT[job.arch]}"
    types = dict(job.signature)
    operands = {types[name] for name in OPERANDS.get(job.kernel, ()) if name in types}
    if len(operands) == 1 and operands <= {"*fp16", "*bf16"} and not report.tensor_cores:
        return "no tensor cores"
    return ""


def _digest(job: Job) -> str:
    import triton

    source = getattr(import_module(job.module), job.kernel).cache_key
    return hashlib.sha256(f"{triton.__version__} {source} {job} {Report._fields}".encode()).hexdigest()


def _try_job(job: Job) -> Report:
    try:
        return compile_job(job)
    except Exception as error:
        return Report(0, 0, 0, 0, f"{type(error).__name__}: {error}".partition("\n")[0])


def cache_path() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "moe-retrieval" / "inspect.json"


def run_jobs(jobs: list[Job], processes: int) -> Iterator[tuple[Job, Report]]:
    """Compiles what the cache does not have, in several processes; keeps what compiled, also if it is interrupted."""
    path = cache_path()
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    digests = {job: _digest(job) for job in jobs}
    missing = [job for job in jobs if digests[job] not in known]
    yield from ((job, Report(*known[digests[job]])) for job in jobs if digests[job] in known)
    if not missing:
        return
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for job, report in zip(missing, pool.map(_try_job, missing, chunksize=4)):
                if not report.error:
                    known[digests[job]] = report
                yield job, report
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(known))
            scratch.replace(path)


def describe(job: Job) -> str:
    """The types of the tensors, then the constants."""
    types = "/".join(dict.fromkeys(kind[1:] for _, kind in job.signature if kind in ("*fp32", "*fp16", "*bf16")))
    constants = dict(job.constants)
    blocks = " ".join(f"{name.removeprefix('BLOCK_')}{value}" for name, value in job.constants if "BLOCK_" in name)
    words = [str(value) for name, value in job.constants if isinstance(value, str)]
    flags = [name for name, value in constants.items() if value is True]
    without = [f"-{name.removeprefix('p_')}" for name, value in constants.items() if value is None]
    return " ".join([types, blocks, f"{job.num_warps}w{job.num_stages}s", *words, *flags, *without])


def title(job: Job) -> str:
    return job.kernel.strip("_").removesuffix("_kernel")


def told(job: Job, report: Report) -> str:
    """Its configuration, with the stages that it was compiled with."""
    return describe(job._replace(num_stages=report.stages or job.num_stages))


HEAD = """# The compiled table

By `python -m kernels.inspect {options}`, with Triton {version}. A configuration is the types of the tensors,
the blocks, warps (w) and stages (s), and what is taken for granted; a name after a minus is an argument that is not
there. Registers are a thread's, spills and shared memory a program's, in bytes; the last column counts instructions
of tensor cores in the code, in which a loop has its own once.

| kernel | target | configuration | registers | spills | shared | tensor cores |
|---|---|---|--:|--:|--:|--:|
"""


def write_table(path: Path, reports: list[tuple[Job, Report]], options: str) -> None:
    """As Markdown, in the order of the names."""
    import triton

    lines = []
    for job, report in reports:
        cores = f"{report.tensor_cores} {report.instruction}" if report.tensor_cores else ""
        numbers = f"{report.registers} | {report.spills} | {report.shared} | {cores} |"
        lines.append(f"| {title(job)} | {job.arch} | {told(job, report)} | {numbers}\n")
    head = HEAD.format(options=options, version=triton.__version__)
    path.write_text(head + "".join(sorted(lines)), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.inspect", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--arch", nargs="+", choices=TARGETS, default=list(SHARED_LIMIT), help="targets (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="one size for each kernel and type")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: %(default)s, one a core")
    parser.add_argument("--output", type=Path, help="a file for the table, as Markdown")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    try:
        from kernels.gpu.sweep import launches
    except ImportError as error:
        parser.error(str(error))
    jobs = list(dict.fromkeys(job_of(launch, arch) for launch in launches(options.quick) for arch in options.arch))
    broken = fewer = 0
    reports = []
    print(f"{'kernel':<24}{'target':<8}{'regs':>5}{'spills':>8}{'shared':>8}{'tensor':>8}  configuration")
    for job, report in run_jobs(jobs, options.processes):
        reports.append((job, report))
        problem = breach(job, report)
        broken += bool(problem)
        fewer += 0 < report.stages < job.num_stages
        numbers = f"{report.registers:>5}{report.spills:>8}{report.shared:>8}{report.tensor_cores:>8}"
        line = f"{title(job):<24}{job.arch:<8}{numbers}  {told(job, report)}"
        print(line + (f"  <- {problem} {report.error}" if problem else ""))
    if options.output:
        chosen = ["--arch", *options.arch, *["--quick"] * options.quick]
        write_table(options.output, reports, " ".join(chosen))
    print(f"{len(jobs)} compiled kernels, {broken} over a limit, {fewer} with fewer stages than their tile has")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

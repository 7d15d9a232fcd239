"""Compiles what `bench.gpu.primitives` launches into Triton's cache, without a GPU: on one, minutes are dear.

    TRITON_CACHE_DIR=FOLDER python -m bench.gpu.precompile OUTPUT.jsonl [--only TEXT] [--share K/N] [--small]

FOLDER goes along to a Hopper GPU, where TRITON_CACHE_DIR names it. The same Triton must run there, for the same Python:
the last line of `primitives` tells how many kernels it found. N processes compile N shares at a time.
"""

from bench.gpu import primitives, saved
from bench.gpu.script import on_real_tensors
from bench.harness import no_gpu
from kernels import dispatch
from kernels.gpu import sweep


def main() -> None:
    options = saved.parser(__doc__).parse_args()
    no_gpu.start(compiles=True)
    backend, cache, cases = dispatch.get("triton"), primitives.TritonCache(), saved.cases_of(options)

    def compile_layer(case: sweep.Case) -> None:
        with on_real_tensors("cpu", lambda name: getattr(backend, name)):
            sweep._run_layer(case)

    def compile_norm(norm: sweep.Norm, rate: float) -> None:
        with on_real_tensors("cpu", lambda name: getattr(backend, name)):
            sweep._run_residual_norm(norm, rate)

    for name, case in primitives.layers(primitives.SMALL if options.small else primitives.SIZES):
        cases.run(name, lambda case=case: compile_layer(case))
    for name, norm, rate in primitives.norms(options.small):
        cases.run(name, lambda norm=norm, rate=rate: compile_norm(norm, rate))
    cases.save("Triton's cache", "held", found=cache.found, compiled=cache.compiled)
    cases.end()


if __name__ == "__main__":
    main()

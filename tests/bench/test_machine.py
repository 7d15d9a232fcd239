"""What a machine is called: two that compute at different speeds have different names."""

import platform

import pytest

from bench.harness.machine import cpu_model

INFO = """\
processor\t: 0
vendor_id\t: {}
cpu family\t: {}
model\t\t: {}
model name\t: {}

processor\t: 1
model name\t: of the second core
"""


@pytest.mark.parametrize(
    "vendor, family, model, name, known",
    [
        ("AuthenticAMD", 25, 1, "AMD EPYC", " (Zen 3)"),
        ("AuthenticAMD", 25, 17, "AMD EPYC", " (Zen 4)"),
        ("AuthenticAMD", 25, 160, "AMD EPYC", " (Zen 4)"),
        ("AuthenticAMD", 26, 2, "AMD EPYC", " (Zen 5)"),
        ("AuthenticAMD", 23, 49, "AMD EPYC 7B12", ""),
        ("GenuineIntel", 6, 85, "Intel Xeon", " (Skylake or Cascade Lake)"),
        ("GenuineIntel", 6, 106, "Intel Xeon", " (Ice Lake)"),
        ("GenuineIntel", 6, 143, "Intel Xeon", " (Sapphire Rapids)"),
        ("GenuineIntel", 6, 173, "Intel Xeon", " (Granite Rapids)"),
        ("GenuineIntel", 6, 207, "Intel Xeon", " (Emerald Rapids)"),
        ("GenuineIntel", 26, 2, "Intel Xeon", ""),
    ],
)
def test_the_microarchitecture_is_told(tmp_path, vendor, family, model, name, known):
    info = tmp_path / "cpuinfo"
    info.write_text(INFO.format(vendor, family, model, name))
    assert cpu_model(info) == name + known


def test_a_machine_that_does_not_tell(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert cpu_model(info) == platform.machine()

"""NVIDIA's product names by compute capability, as its pages and `nvidia-smi` write them: a table, nothing else.

One table for the audit, the doctor, the plan and the landing page. `GeForce` and `NVIDIA` are left away, as people do.
The first name of an arch stands for it in messages. Names that differ in memory, form factor or edition only
(`A100-SXM4-80GB`, `RTX 4070 Laptop GPU`) need no rows: `product_key` drops those words.

Sources: NVIDIA's pages "CUDA GPU Compute Capability" and "Legacy CUDA GPU Compute Capability" (2026-11), its MIG user
guide (H20, H800 and the like), and the board names in the driver's list of supported products.
"""

from __future__ import annotations

import re

PRODUCTS: dict[str, tuple[str, ...]] = {
    "5.0": ("GTX 750 Ti", "GTX 750", "GTX 960M", "GTX 950M", "Quadro K2200", "Quadro K1200", "Quadro K620"),
    "5.2": (
        *("Tesla M40", "Tesla M60", "Tesla M4", "GTX TITAN X", "GTX 980 Ti", "GTX 980", "GTX 970", "GTX 960"),
        *("GTX 950", "Quadro M6000", "Quadro M5000", "Quadro M4000", "Quadro M2000"),
    ),
    "5.3": ("Jetson Nano", "Jetson TX1"),
    "6.0": ("P100", "Quadro GP100"),
    "6.1": (
        *("P40", "P4", "P6", "GTX 1080 Ti", "GTX 1080", "GTX 1070 Ti", "GTX 1070", "GTX 1060", "GTX 1050 Ti"),
        *("GTX 1050", "GT 1030", "TITAN Xp", "TITAN X", "TITAN X (Pascal)", "Quadro P6000", "Quadro P5200"),
        *("Quadro P5000", "Quadro P4200", "Quadro P4000", "Quadro P3200", "Quadro P3000", "Quadro P2200"),
        *("Quadro P2000", "Quadro P1000", "Quadro P620", "Quadro P600", "Quadro P500", "Quadro P400"),
    ),
    "6.2": ("Jetson TX2",),
    "7.0": ("V100", "V100S", "TITAN V", "Quadro GV100", "PG503-216", "PG500-216"),
    "7.2": ("Xavier", "Jetson AGX Xavier", "Jetson Xavier NX"),
    "7.5": (
        *("T4", "T4G", "T40", "RTX 2080 Ti", "RTX 2080", "RTX 2070", "RTX 2060", "TITAN RTX", "GTX 1660 Ti"),
        *("GTX 1660", "GTX 1650 Ti", "GTX 1650", "GTX 1630", "Quadro RTX 8000", "Quadro RTX 6000"),
        *("Quadro RTX 5000", "Quadro RTX 4000", "Quadro RTX 3000", "T2000", "T1200", "T1000", "T600", "T550"),
        *("T500", "T400", "T10", "MX550", "MX450", "CMP 50HX", "CMP 40HX", "CMP 30HX"),
    ),
    "8.0": ("A100", "A30", "A800", "A100X", "A30X", "A800 40GB Active", "CMP 170HX", "DRIVE-PG199-PROD"),
    "8.6": (
        *("A40", "A10", "A10G", "A10M", "A16", "A2", "RTX A6000", "RTX A5500", "RTX A5000", "RTX A4500"),
        *("RTX A4000", "RTX A3000", "RTX A2000", "RTX A1000", "RTX A500", "RTX A400", "A6000", "A5500", "A5000"),
        *("A4500", "A4000", "A2000", "RTX 3090 Ti", "RTX 3090", "RTX 3080 Ti", "RTX 3080", "RTX 3070 Ti"),
        *("RTX 3070", "RTX 3060 Ti", "RTX 3060", "RTX 3050 Ti", "RTX 3050", "RTX 2050", "MX570", "CMP 90HX"),
    ),
    "8.7": ("Orin", "Jetson AGX Orin", "Jetson Orin NX", "Jetson Orin Nano", "IGX Orin"),
    "8.9": (
        *("L4", "L40", "L40S", "L40G", "L20", "L2", "RTX 6000 Ada", "RTX 5880 Ada", "RTX 5000 Ada"),
        *("RTX 4500 Ada", "RTX 4000 Ada", "RTX 4000 SFF Ada", "RTX 3500 Ada", "RTX 3000 Ada", "RTX 2000 Ada"),
        *("RTX 1000 Ada", "RTX 500 Ada", "RTX 4090", "RTX 4090 D", "RTX 4080", "RTX 4070 Ti", "RTX 4070"),
        *("RTX 4060 Ti", "RTX 4060", "RTX 4050"),
    ),
    "9.0": ("H100", "H200", "H20", "H800", "GH200", "H100 CNX", "H20-3e"),
    "10.0": ("B200", "B100", "GB200"),
    "10.1": ("Thor (CUDA 12)",),
    "10.3": ("B300", "GB300"),
    "10.7": ("Rubin",),
    "11.0": ("Thor", "Jetson AGX Thor", "Jetson T5000", "Jetson T4000", "IGX Thor"),
    "12.0": (
        *("RTX 5090", "RTX 5090 D", "RTX 5080", "RTX 5070 Ti", "RTX 5070", "RTX 5060 Ti", "RTX 5060", "RTX 5050"),
        *("RTX PRO 6000", "RTX PRO 6000 Blackwell", "RTX PRO 5000", "RTX PRO 5000 Blackwell"),
        *("RTX PRO 4500", "RTX PRO 4500 Blackwell", "RTX PRO 4000", "RTX PRO 4000 Blackwell"),
        *("RTX PRO 4000 Blackwell SFF", "RTX PRO 3000", "RTX PRO 3000 Blackwell", "RTX PRO 2000"),
        *("RTX PRO 2000 Blackwell", "RTX PRO 1000", "RTX PRO 1000 Blackwell", "RTX PRO 500", "RTX PRO 500 Blackwell"),
    ),
    "12.1": ("GB10", "DGX Spark"),
}
"""Products by compute capability. `A4000` and its like are what people say for `RTX A4000`."""

_MAKERS = re.compile(r"nvidia|geforce|tesla")
_DECORATION = re.compile(
    r"sxm\d?|pcie|pg\d*|nvl\d*|hbm\d?e?|\d+gi?b?|mig|\d+[acqb]|ls|dgxs|fhhl|grid|super"  # memory, form factor, slices
    r"|gpu|nvgpu|laptop|mobile|notebook|generation|edition|server|workstation|desktop|max|q|with|design|sff|developer|kit"
)


def plain(name: str) -> str:
    """Return a name without makers, blanks and signs: `rtx5090` for `NVIDIA GeForce RTX 5090`."""
    return re.sub(r"[^a-z0-9]", "", _MAKERS.sub("", name.lower()))


def product_key(name: str) -> str:
    """Return `plain` without the words that do not change the arch: `a100` for `NVIDIA A100-SXM4-80GB`."""
    words = re.split(r"[^a-z0-9]+", _MAKERS.sub("", name.lower()))
    return "".join(word for word in words if not _DECORATION.fullmatch(word))

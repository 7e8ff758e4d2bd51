"""What kernels need to know of NVIDIA GPUs, by the name that the driver gives them."""

KIB = 1024
PREFIX = "NVIDIA"
SHARED_MEMORY = (
    (("H100", "H200", "H800", "H20", "GH200", "B100", "B200", "GB200", "B300", "GB300"), 227 * KIB),
    (("A100", "A800", "A30", "Thor"), 163 * KIB),
)
"""Bytes that one program may have, by words of the device kind (CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability": 9.0, 10.0 and 8.0)."""
OTHER_SHARED_MEMORY = 99 * KIB
"""Of the rest from compute capability 8.6 on: workstation, inference and consumer cards."""


def shared_memory(kind: str) -> int:
    """Bytes of on-chip memory that one program may have on a device of this kind."""
    words = kind.replace("-", " ").split()
    found = (size for names, size in SHARED_MEMORY if set(names) & set(words))
    return next(found, OTHER_SHARED_MEMORY)

"""How vLLM runs on a machine without a GPU."""

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def environment(cache: Path) -> dict[str, str]:
    """What every vLLM process on the CPU gets; what it keeps lies below `cache`."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(min(os.cpu_count() or 1, 8)),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "vllm-config"),
        "HF_HOME": str(cache / "huggingface"),
    }


def served_revision(weights: str, cpuinfo: Path = CPUINFO) -> str:
    """What identifies weights as they are served: in another precision their answers are others, and the ledger must
    not take one for the other."""
    return f"{weights}+{found}" if (found := precision(cpuinfo)) else weights


def precision(cpuinfo: Path = CPUINFO) -> str | None:
    """The type that weights are computed in where their own, bfloat16, would be slow; None leaves it to vLLM.

    An x86 processor without AVX-512 has no kernel for bfloat16 in oneDNN: vLLM falls back to one that answers a quarter
    of the tokens in a second that float32 does. The weights themselves stay what they are, bfloat16 is part of float32.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:  # no Linux
        return None
    flags = next((line.split() for line in lines if line.startswith("flags")), None)  # other processors: "Features"
    return "float32" if flags is not None and "avx512f" not in flags else None

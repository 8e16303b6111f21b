"""How vLLM runs on a machine without a GPU."""

import os
from pathlib import Path


def environment(cache: Path) -> dict[str, str]:
    """What every vLLM process on the CPU gets; what it keeps lies below `cache`."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(min(os.cpu_count() or 1, 8)),
        "VLLM_CACHE_ROOT": str(cache / "vllm"),
        "VLLM_CONFIG_ROOT": str(cache / "vllm-config"),
        "HF_HOME": str(cache / "huggingface"),
    }

"""Memory for messages is used again instead of being fetched from the kernel page by page."""

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
for _ in range(100):
    [b"x" * (1 << 19) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have other habits")
def test_messages_cost_few_page_faults():
    def faults(before: str) -> int:
        done = subprocess.run([sys.executable, "-c", before + CHURN], capture_output=True, text=True, check=True)
        return int(done.stdout)

    keeping = "from safegraft.rpc.allocator import keep_freed_memory as keep; {}\n"
    assert faults(keeping.format("keep()")) < faults(keeping.format("")) / 3

"""The allocator setting takes effect with glibc, and says so."""

import ctypes.util
import subprocess
import sys

CODE = "from jgpt.malloc import keep_freed_buffers as keep; print(keep(), type(keep()).__name__)"


def test_it_says_whether_it_took_effect():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    glibc = sys.platform == "linux" and "libc.so.6" in str(ctypes.util.find_library("c"))
    assert done.stdout.split()[1] == "bool"
    assert done.stdout.split()[0] == str(glibc)

"""The library that `nft` is a command line of: libnftables(3), by ctypes. *Shell.*

Called within the process because somebody waits for a connection, and a process of its own costs ten
times the transaction.
"""

from __future__ import annotations

import ctypes
from functools import cache

LIBRARY = "libnftables.so.1"
STATELESS = 1 << 2
"""NFT_CTX_OUTPUT_STATELESS: list rules without their counters."""


def run_commands(commands: str) -> tuple[int, str, str]:
    """Run commands in nft(8)'s syntax: status (0 is success), output, errors.

    All changes in `commands` are one transaction. Raises OSError where the library is not installed.
    """
    library = _library()
    context = library.nft_ctx_new(0)
    if not context:
        raise MemoryError("libnftables gave no context")
    try:
        library.nft_ctx_output_set_flags(context, STATELESS)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        status = library.nft_run_cmd_from_buffer(context, commands.encode())
        output = library.nft_ctx_get_output_buffer(context) or b""
        error = library.nft_ctx_get_error_buffer(context) or b""
        return status, output.decode(), error.decode()
    finally:
        library.nft_ctx_free(context)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    context = ctypes.c_void_p
    library.nft_ctx_new.argtypes, library.nft_ctx_new.restype = [ctypes.c_uint32], context
    library.nft_ctx_free.argtypes, library.nft_ctx_free.restype = [context], None
    library.nft_ctx_output_set_flags.argtypes = [context, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [context, ctypes.c_char_p]
    library.nft_run_cmd_from_buffer.restype = ctypes.c_int
    for name in ("output", "error"):
        buffer = getattr(library, f"nft_ctx_buffer_{name}")
        buffer.argtypes, buffer.restype = [context], ctypes.c_int
        get = getattr(library, f"nft_ctx_get_{name}_buffer")
        get.argtypes, get.restype = [context], ctypes.c_char_p
    return library

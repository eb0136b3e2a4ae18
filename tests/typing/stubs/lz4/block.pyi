def compress(
    source: bytes | memoryview,
    mode: str = ...,
    store_size: bool = ...,
    acceleration: int = ...,
    compression: int = ...,
    return_bytearray: bool = ...,
    dict: bytes | None = ...,  # noqa: A002 - lz4's own name
) -> bytes: ...
def decompress(
    source: bytes | memoryview,
    uncompressed_size: int = ...,
    return_bytearray: bool = ...,
    dict: bytes | None = ...,  # noqa: A002 - lz4's own name
) -> bytes: ...

class LZ4BlockError(Exception): ...

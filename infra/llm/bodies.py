"""Reading what a server sends, and no more of it than there is room for."""

import aiohttp


async def read_body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body up to the first piece beyond `most` bytes; cut there it is no JSON any more."""
    if response.content_length is not None and response.content_length <= most:
        return await response.read()
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > most:
            response.close()
            break
    return b"".join(pieces)

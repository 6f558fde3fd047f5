"""The connections to Groq: no request goes out where a reply has come that nobody asked for."""

import aiohttp
from aiohttp.connector import Connection


class Connector(aiohttp.TCPConnector):
    """aiohttp's pool, which hands out idle connections without a look at what has come on them.

    The reply to another request would be taken for that to ours, and on some ways of asking so for
    ever. tests/test_connector.py fails where a later version of aiohttp takes connections from its
    pool otherwise.
    """

    async def _get(self, *which: object) -> Connection | None:
        while True:
            connection: Connection | None = await super()._get(*which)  # type: ignore[arg-type] # passed on as they are
            if connection is None or connection.protocol is None:
                return connection
            if not connection.protocol.should_close:
                return connection
            connection.close()

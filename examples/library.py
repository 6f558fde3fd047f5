"""Store and read a conversation in Redis without the HTTP service.

Without REDIS_URL, the program starts a private server with its data in `.data/example`.
"""

import asyncio
import os

from groqchat import RedisChatService

URL = os.environ.get("REDIS_URL", "embedded:.data/example")


async def main() -> None:
    """Store two messages, print the history, and delete the session."""
    async with RedisChatService.from_url(URL, ttl_s=3600) as history:
        await history.save_message("example-library", "user", "What is Redis?")
        await history.save_message("example-library", "assistant", "A data structure server.")
        for message in await history.get_session_history("example-library"):
            print(f"{message.role}: {message.content}")
        await history.clear_session("example-library")


asyncio.run(main())

"""The amqtt broker, with passwords and rights on: `python -m tests.bench.peer_amqtt CONFIG.json`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from amqtt.broker import Broker


async def _serve(config: dict[str, object]) -> None:
    broker = Broker(config)
    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_serve(json.loads(Path(sys.argv[1]).read_text())))

"""Three job processes of a real AgentServer, without a LiveKit server; one of them is killed while it speaks.

    python jobs.py SOCKET DIRECTORY ROOM…

Every job attaches a client and converses; what was said is appended to DIRECTORY/ROOM.said by the session's own listener,
which runs before the client's. The last room's process kills itself with SIGKILL in the middle, the others end by
``ctx.shutdown``. DIRECTORY/ROOM.stats holds the client's numbers after the shutdown callbacks.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any, List

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from fakes import ScriptedLLM, accepted  # noqa: E402
from livekit.agents import AgentServer, JobContext, JobProcess  # noqa: E402
from livekit.agents.voice import Agent, AgentSession  # noqa: E402

from chat_history_client import ChatHistoryClient  # noqa: E402

TURNS = 12
KILLED_AFTER = 7


class Book(dict):  # type: ignore[type-arg]
    def __missing__(self, asked: str) -> str:
        return "You said: %s — नमस्ते 🐯" % asked


class NoDirector:
    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 20)


def prewarm(process: JobProcess) -> None:
    """A warmed-up process holds a client before it has a job, a loop of its own or a session."""
    process.userdata["history"] = ChatHistoryClient()


async def entrypoint(ctx: JobContext) -> None:
    room = ctx.job.room.name  # the mock room of a simulated job is called "console"
    directory, victim = os.environ["TEST_DIRECTORY"], os.environ["TEST_VICTIM"]
    said = open(os.path.join(directory, room + ".said"), "w", buffering=1, encoding="utf-8")  # noqa: SIM115, ASYNC230
    session: AgentSession = accepted(AgentSession, llm=ScriptedLLM(NoDirector(), Book(), "", ""), vad=None)  # type: ignore[arg-type]

    def note(event: Any) -> None:
        if getattr(event.item, "role", None) in ("user", "assistant"):
            said.write(json.dumps([1 if event.item.role == "user" else 2, event.item.text_content]) + "\n")

    session.on("conversation_item_added", note)
    client: ChatHistoryClient = ctx.proc.userdata["history"]
    client.attach(session, mac_address="68:25:dd:ba:39:78", session_id=room)

    async def finish(reason: str) -> None:
        await client.on_shutdown(reason)
        with open(os.path.join(directory, room + ".stats"), "w") as out:  # noqa: ASYNC230
            json.dump(client.stats._asdict(), out)

    ctx.add_shutdown_callback(finish)
    await session.start(Agent(instructions="You repeat."))
    for turn in range(TURNS):
        await session.generate_reply(user_input="sentence %d of %s" % (turn, room))
        if room == victim and turn == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
    ctx.shutdown("done")


async def main(rooms: List[str]) -> None:
    directory = Path(os.environ["TEST_DIRECTORY"])
    server = AgentServer(
        setup_fnc=prewarm,
        num_idle_processes=1,
        host="127.0.0.1",
        port=0,
        ws_url="ws://127.0.0.1:1",
        api_key="k",
        api_secret="s" * 32,
    )
    server.rtc_session(entrypoint)
    running = asyncio.ensure_future(server.run(devmode=True, unregistered=True))
    await asyncio.sleep(0.5)
    for room in rooms:
        await server.simulate_job(room=room, fake_job=True)
    while len(list(directory.glob("*.stats"))) < len(rooms) - 1:
        await asyncio.sleep(0.1)
        if running.done():
            running.result()
    await server.aclose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    socket, directory, *rooms = sys.argv[1:]
    os.environ.update(CHAT_HISTORYD_SOCKET=socket, TEST_DIRECTORY=directory, TEST_VICTIM=rooms[-1])
    asyncio.run(asyncio.wait_for(main(rooms), 90))

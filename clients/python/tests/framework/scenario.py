"""Plays three conversations with a real AgentSession, attached to the daemon through the client.

    python scenario.py SOCKET PREFIX [SPEED]

Prints one JSON object: for each session id, what was said, in order, as [chat_type, text, exactly]; where ``exactly``
is false, the sentence was cut off and only its beginning was heard.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from fakes import Reply, Stage  # noqa: E402
from livekit.agents import __version__, function_tool  # noqa: E402
from livekit.agents.voice import Agent  # noqa: E402

from chat_history_client import ChatHistoryClient  # noqa: E402

USER, AGENT = 1, 2
Said = Tuple[int, str, bool]

GREETING = "Hello! I am the fox. How can I help you today?"
STORY = (
    "Once upon a time, in a small village by the sea, there lived a clever fox named Rufus who loved to count the stars "
    "and who knew every one of them by its name and by the colour of its light."
)
LAST = "That was a long story, but here is another one, and it begins on a cold and windy night far up in the north."
BOOK: Dict[str, Reply] = {
    "tell me something about the tiger please": "Tigers are the biggest cats of all! 🐯 Their stripes are like fingerprints — no two are alike.",
    "make it louder": ("set_volume", {"percent": 60}),
    "tell me a very long story": STORY,
    "stop stop please": "Okay, I am quiet now.",
    "मुझे हिंदी में नमस्ते बोलो": "नमस्ते! आप कैसे हैं? 👨‍👩‍👧 मैं ठीक हूँ।",
    "if a<b then Tom & Jerry": "Then a < b, and Tom & Jerry  agree.",
    "what do you see there": "I see what you see.",
    "and one more story": LAST,
}
TOOL_SAYS = "I have made it louder for you."
BY_ITSELF = "Shall we play a game?"
NOTICE = "Please listen, this must be said to the end before we go on."
OVER_IT = "but I do not want to listen"


class Fox(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You are a fox.")
        self.louder = 0

    @function_tool
    async def set_volume(self, percent: int) -> str:
        """Sets the volume.

        Args:
            percent: how loud
        """
        self.louder = percent
        return "volume is now %d percent" % percent


async def whole_conversation(client: ChatHistoryClient, room: str, mac: str, speed: float) -> List[Said]:
    stage = Stage(BOOK, after_tool=TOOL_SAYS, by_itself=BY_ITSELF, speed=speed)
    session, director, fox = stage.session, stage.director, Fox()
    client.attach(session, mac_address=mac, session_id=room)
    await stage.start(fox)
    session.say(GREETING)
    await stage.quiet()

    await director.user_says("tell me something about the tiger please")
    await stage.quiet()
    await director.user_says("make it louder")
    await stage.quiet()
    assert fox.louder == 60

    await director.user_says("tell me a very long story")
    await stage.speaking()
    await director.wait(3.0)
    await director.user_says("stop stop please")  # interrupts
    await stage.quiet()

    await director.user_says("मुझे हिंदी में नमस्ते बोलो")
    await stage.quiet()
    await session.generate_reply(user_input="if a<b then Tom & Jerry")  # typed
    await stage.quiet()
    await session.generate_reply(instructions="offer a game")
    await stage.quiet()

    notice = session.say(NOTICE, allow_interruptions=False)
    await stage.speaking()
    await director.user_says(OVER_IT)  # never becomes an item
    await notice
    await stage.quiet()
    await director.user_says("what do you see there")
    await stage.quiet()

    stage.tts.broken = True
    session.say("this is never heard: the voice is out of order")
    await director.wait(1.5)
    stage.tts.broken = False
    await stage.quiet()

    await director.user_says("and one more story")
    await stage.speaking()
    await director.wait(2.0)
    # the caller hangs up while the agent speaks; on 1.2.x the callbacks run beside the session's own close
    await asyncio.gather(session.aclose(), client.on_shutdown("participant_disconnected"))
    return [
        (AGENT, GREETING, True),
        (USER, "tell me something about the tiger please", True),
        (AGENT, str(BOOK["tell me something about the tiger please"]), True),
        (USER, "make it louder", True),
        (AGENT, TOOL_SAYS, True),
        (USER, "tell me a very long story", True),
        (AGENT, STORY, False),
        (USER, "stop stop please", True),
        (AGENT, str(BOOK["stop stop please"]), True),
        (USER, "मुझे हिंदी में नमस्ते बोलो", True),
        (AGENT, str(BOOK["मुझे हिंदी में नमस्ते बोलो"]), True),
        (USER, "if a<b then Tom & Jerry", True),
        (AGENT, str(BOOK["if a<b then Tom & Jerry"]), True),
        (AGENT, BY_ITSELF, True),
        (AGENT, NOTICE, True),
        (USER, OVER_IT, True),
        (USER, "what do you see there", True),
        (AGENT, str(BOOK["what do you see there"]), True),
        (USER, "and one more story", True),
        (AGENT, LAST, False),
    ]


async def hung_up_in_mid_sentence(client: ChatHistoryClient, room: str, mac: str, speed: float) -> List[Said]:
    stage = Stage(BOOK, speed=speed)
    client.attach(stage.session, mac_address=mac, session_id=room)
    await stage.start(Fox())
    stage.session.say(GREETING)
    await stage.quiet()
    await stage.director.user_says("mother says that I", final=False, ends=False)
    await asyncio.gather(stage.session.aclose(), client.on_shutdown("participant_disconnected"))
    return [(AGENT, GREETING, True), (USER, "mother says that I", True)]


async def hung_up_before_the_turn_ended(client: ChatHistoryClient, room: str, mac: str, speed: float) -> List[Said]:
    stage = Stage(BOOK, speed=speed)
    client.attach(stage.session, mac_address=mac, session_id=room)
    await stage.start(Fox())
    stage.session.say(GREETING)
    await stage.quiet()
    await stage.director.user_says("good night my fox", ends=False)
    await asyncio.gather(stage.session.aclose(), client.on_shutdown("participant_disconnected"))
    return [(AGENT, GREETING, True), (USER, "good night my fox", True)]


async def main(socket: str, prefix: str, speed: float) -> None:
    began = time.monotonic()
    plays = {
        "whole": (whole_conversation, "68:25:dd:ba:39:78"),
        "midsentence": (hung_up_in_mid_sentence, "68:25:dd:ba:39:79"),
        "midturn": (hung_up_before_the_turn_ended, "68:25:dd:ba:39:7a"),
    }
    clients = {name: ChatHistoryClient(socket) for name in plays}
    rooms = {name: "%s-%s_%s_conversation" % (prefix, name, mac.replace(":", "")) for name, (_, mac) in plays.items()}
    # one after the other: a busy machine must not blur the timing of a conversation
    said: Dict[str, Any] = {}
    for name, (play, mac) in plays.items():
        said[rooms[name]] = {"mac": mac, "said": await play(clients[name], rooms[name], mac, speed)}
        stats = clients[name].stats
        assert (stats.pending, stats.dropped, stats.errors, stats.refused) == (0, 0, 0, 0), stats
    print(json.dumps({"version": __version__, "seconds": round(time.monotonic() - began, 1), "sessions": said}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 6.0))

"""The framework's own events, at their worst, through the listener and into a socket: run by the framework's Python."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

sys.path[:0] = [str(Path(__file__).parents[2])]

from livekit import rtc  # noqa: E402
from livekit.agents import __version__  # noqa: E402
from livekit.agents.llm import AudioContent, ChatMessage, ImageContent  # noqa: E402
from livekit.agents.tts import TTSError  # noqa: E402
from livekit.agents.voice import AgentSession  # noqa: E402
from livekit.agents.voice.events import (  # noqa: E402
    CloseEvent,
    CloseReason,
    ConversationItemAddedEvent,
    ErrorEvent,
    UserInputTranscribedEvent,
)

from chat_history_client import ChatHistoryClient  # noqa: E402


class Plugin:
    """What stands in ``ErrorEvent.source``: the plugin itself."""


def events() -> Dict[str, Any]:
    frame = rtc.AudioFrame(b"\0" * 4800, 24000, 1, 2400)
    odd = ["half \ud83d", AudioContent(frame=[frame] * 500, transcript="spoken"), ImageContent(image="data:," + "A" * 2_000_000)]
    problem = TTSError(timestamp=1.0, label="fakes.TTS", error=ValueError("the key is hunter2"), recoverable=False)
    return {
        "conversation_item_added": ConversationItemAddedEvent(
            item=ChatMessage(role="user", content=odd, created_at=float("nan"))
        ),
        "user_input_transcribed": UserInputTranscribedEvent(transcript="\udc2f words", is_final=True),
        "error": ErrorEvent(error=problem, source=Plugin()),
        "close": CloseEvent(error=problem, reason=CloseReason.ERROR),
    }


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="chc-") as directory:
        path = os.path.join(directory, "s")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        session: AgentSession = AgentSession()
        client = ChatHistoryClient(path)
        assert client.attach(session, session_id="room")
        there, _ = listener.accept()
        slowest = 0.0
        for name, event in events().items():
            began = time.perf_counter()
            session.emit(name, event)
            slowest = max(slowest, time.perf_counter() - began)
        assert client.stats.errors == 0, client.stats
        there.settimeout(5)
        read = b""
        while read.count(b"\n") < 5:
            read += there.recv(1 << 20)
        lines: List[Any] = [json.loads(line.decode("utf-8")) for line in read.splitlines()][1:]
        assert lines[0]["item"]["content"] == [
            "half \ufffd",
            {"type": "audio_content", "transcript": "spoken"},
            {"type": "image_content"},
        ], lines[0]
        assert lines[0]["item"]["created_at"] is None
        assert lines[1]["transcript"] == "\ufffd words"
        assert lines[2]["error"]["type"] == "tts_error"
        assert "hunter2" not in read.decode()
        assert lines[3]["reason"] == "error"
        assert len(read) < 4000
        # two megabytes of image and fifty seconds of sound were neither copied nor encoded
        assert slowest < 0.02, slowest

        broken = AgentSession()
        other = ChatHistoryClient(path)
        other.attach(broken, session_id="other")
        for name in events():
            broken.emit(name, object())
        client._lost_connection()
        other._lost_connection()
    print(__version__, "ok")


if __name__ == "__main__":
    asyncio.run(main())

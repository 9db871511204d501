"""The traps between a Python object and a line of UTF-8 JSON."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import enum
import json
import math
import random
import time
import uuid
from typing import Any, Dict, List

import pytest

from chat_history_client import ChatHistoryClient
from support.peer import peer_at
from support.session import Event, Session, close, item


def sent(path: str, *events: Any, **options: Any) -> List[Dict[str, Any]]:
    """The lines that a daemon which reads strict UTF-8 and strict JSON receives for these events."""
    session = Session()
    with peer_at(path) as peer:
        client = ChatHistoryClient(path, **options)
        client.attach(session, session_id="room")
        for event in events:
            session.emit(event.type, event)
        assert client.flush_sync(5)
        assert client.stats.errors == 0
    lines = peer.raw.split(b"\n")[1:-1]

    def refuse(constant: str) -> None:
        raise AssertionError("%s is not JSON" % constant)

    return [json.loads(line.decode("utf-8"), parse_constant=refuse) for line in lines]


@pytest.mark.parametrize(
    ("said", "arrives"),
    [
        ("नमस्ते, तुम कैसे हो? 🐯👨‍👩‍👧", "नमस्ते, तुम कैसे हो? 🐯👨‍👩‍👧"),
        ("half \ud83d of a tiger", "half \ufffd of a tiger"),
        ("\udc2f", "\ufffd"),
        ("two halves: \ud83d\udc2f", "two halves: 🐯"),
        ("a\ud83d", "a\ufffd"),
        ('line\nbreak\ttab\r\x00\x1f\u2028"\\', 'line\nbreak\ttab\r\x00\x1f\u2028"\\'),
        ("if a<b then Tom & Jerry", "if a<b then Tom & Jerry"),
        ("", ""),
    ],
)
def test_text_arrives_as_it_was_said(path: str, said: str, arrives: str) -> None:
    assert sent(path, item(said))[0]["item"]["content"] == [arrives]


def test_not_a_number_becomes_null(path: str) -> None:
    line = sent(
        path, item("hello", created_at=float("nan"), transcript_confidence=float("-inf"), metrics={"a": [math.inf, 1.5]})
    )[0]
    assert line["item"]["created_at"] is None
    assert line["item"]["transcript_confidence"] is None
    assert line["item"]["metrics"] == {"a": [None, 1.5]}
    assert line["item"]["content"] == ["hello"]


def test_audio_and_images_are_not_sent_but_their_words_are(path: str) -> None:
    audio = {"type": "audio_content", "frame": ["A" * 4000] * 200, "transcript": "what I said"}
    image = {"type": "image_content", "id": "img_1", "image": "data:image/png;base64," + "A" * 100_000}
    line = sent(path, item(["before", audio, image, "after"]))[0]
    assert line["item"]["content"] == [
        "before",
        {"type": "audio_content", "transcript": "what I said"},
        {"type": "image_content"},
        "after",
    ]
    assert len(json.dumps(line)) < 500


def test_the_dump_is_told_to_leave_media_out(path: str) -> None:
    """Frames would be encoded to base64, megabytes of it, inside the listener, only to be thrown away."""
    seen: List[Any] = []

    class Watched(Event):
        def model_dump(self, *, mode: str, exclude: Any = None, warnings: bool = True) -> Dict[str, Any]:
            seen.append((mode, exclude, warnings))
            return super().model_dump(mode=mode, exclude=exclude, warnings=warnings)

    sent(path, Watched("conversation_item_added", item=item("hello").item))
    assert seen == [("json", {"item": {"hash": True, "content": {"__all__": {"frame", "image"}}}}, False)]


def test_an_item_that_changes_after_it_was_emitted_arrives_as_it_was(path: str) -> None:
    session = Session()

    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")  # nobody there: the line stays in memory
        event = item("as it was said", interrupted=False)
        session.emit("conversation_item_added", event)
        event.item.content[0] = "changed"
        event.item.content.append("more")
        event.item.interrupted = True
        with peer_at(path) as peer:
            await client.aclose()
        assert peer.archive.all()[0]["item"]["content"] == ["as it was said"]
        assert peer.archive.all()[0]["item"]["interrupted"] is False

    asyncio.run(agent())


class Unserialisable(Event):
    """As ``error`` on 1.2.x: its source is the plugin object itself."""

    def model_dump(self, *, mode: str, exclude: Any = None, warnings: bool = True) -> Dict[str, Any]:
        if not (exclude or {}).get("source"):
            raise ValueError("Unable to serialize unknown type")
        return super().model_dump(mode=mode, exclude=exclude, warnings=warnings)


def test_an_error_event_goes_without_the_source_that_cannot_be_dumped(path: str) -> None:
    problem = Event("tts_error", timestamp=1.0, label="fakes.TTS", recoverable=False)
    line = sent(path, Unserialisable("error", error=problem, source=object(), created_at=2.0))[0]
    assert line["error"] == {"type": "tts_error", "timestamp": 1.0, "label": "fakes.TTS", "recoverable": False}
    assert "source" not in line
    assert "salvaged" not in line, "dumped by the framework, but for that field"


class Undumpable(Event):
    def model_dump(self, **_: Any) -> Any:
        raise TypeError("no dump of this")


class Role(str, enum.Enum):
    USER = "user"


def test_an_event_that_cannot_be_dumped_at_all_is_read_field_by_field(path: str) -> None:
    part = Event("audio_content", transcript="spoken")
    message = Undumpable(
        "message",
        id="item_1",
        role=Role.USER,
        content=["typed", part, object()],
        interrupted=True,
        created_at=5.0,
        metrics=object(),
    )
    call = Undumpable("function_call", id="c", call_id="call_1", name="set_volume", arguments='{"percent": 60}', created_at=3.0)
    lines = sent(
        path,
        Undumpable("conversation_item_added", item=message, created_at=6.0),
        Undumpable("function_tools_executed", function_calls=[call], function_call_outputs=[None], created_at=7.0),
        Undumpable("error", error=Undumpable("llm_error", label="llm", recoverable=True), source=object(), created_at=8.0),
        Undumpable("user_input_transcribed", transcript="words", is_final=True, created_at=9.0),
        Undumpable("close", reason="user_initiated", error=None, created_at=10.0),
    )
    assert lines[0]["item"] == {
        "id": "item_1",
        "type": "message",
        "role": "user",
        "content": ["typed", {"type": "audio_content", "transcript": "spoken"}],
        "interrupted": True,
        "transcript_confidence": None,
        "created_at": 5.0,
    }
    assert lines[1]["function_calls"][0]["arguments"] == '{"percent": 60}'
    assert lines[1]["function_call_outputs"] == []
    assert lines[2]["error"]["type"] == "llm_error"
    assert (lines[3]["transcript"], lines[3]["is_final"]) == ("words", True)
    assert lines[4]["reason"] == "user_initiated"
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5]


def test_what_json_cannot_say_is_named_and_the_rest_is_kept(path: str) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise TypeError

    cycle: Dict[str, Any] = {}
    cycle["again"] = cycle
    line = sent(
        path, item("kept", extra={"odd": Odd(), 7: "number", ("a",): "tuple", "bytes": b"\xff", "set": {1}, "cycle": cycle})
    )[0]
    assert line["item"]["content"] == ["kept"]
    assert line["item"]["extra"]["odd"] == "<Odd>"
    assert line["item"]["extra"]["7"] == "number"
    assert line["item"]["extra"]["bytes"] == "<bytes>"


def test_a_deeply_nested_extra_does_not_cost_the_sentence(path: str) -> None:
    deep: Any = "bottom"
    for _ in range(100_000):
        deep = [deep]
    line = sent(path, item("kept", extra={"deep": deep}))[0]
    assert line["item"]["content"] == ["kept"]
    while deep != "bottom":  # freeing it recursively is a test of CPython, not of us
        deep = deep[0]


def test_an_event_cannot_forge_the_number_or_the_session_of_its_line(path: str) -> None:
    event = Event("error", error=None, seq=999, session_id="another", mac_address="00:00:00:00:00:00", created_at=1.0)
    assert sent(path, event) == [{"type": "error", "error": None, "created_at": 1.0, "seq": 1}]


def test_a_huge_tool_result_is_cut_and_stays_json(path: str) -> None:
    call = {"name": "search", "output": "ü" * 3_000_000, "id": "x"}
    event = Event("function_tools_executed", function_calls=[], function_call_outputs=[call], created_at=time.time())
    line = sent(path, event)[0]
    output = line["function_call_outputs"][0]["output"]
    assert output.endswith("…")
    assert len(json.dumps(line, ensure_ascii=False).encode()) <= (1 << 20) + 50


def test_the_daemons_own_line_limit_is_kept(path: str) -> None:
    async def agent() -> None:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        client.message(1, "first")
        while client.stats.acked < 1:
            await asyncio.sleep(0.002)
        client.message(1, "x" * 50_000)
        assert await client.aclose(timeout=20)

    with peer_at(path) as peer:
        peer.answer = lambda line: (
            {"type": "ready", "last_seq": 0, "max_line_bytes": 10_000}
            if line["type"] == "session_start"
            else {"type": "ack", "seq": line["seq"]}
        )
        asyncio.run(agent())
    assert max(len(line) for line in peer.raw.split(b"\n")) <= 10_000


def test_plain_dictionaries_are_events_too(path: str) -> None:
    session = Session()
    with peer_at(path) as peer:
        client = ChatHistoryClient(path)
        client.attach(session, session_id="room")
        session.emit("user_input_transcribed", {"transcript": "not yet", "is_final": False})
        session.emit("conversation_item_added", {"item": {"role": "user", "content": ["hello"]}})
        assert client.flush_sync(5)
    assert peer.archive.all() == [{"item": {"role": "user", "content": ["hello"]}, "type": "conversation_item_added", "seq": 1}]


def test_only_the_events_asked_for_are_listened_to(path: str) -> None:
    session = Session()
    ChatHistoryClient(path).attach(session, session_id="room")
    assert set(session.listeners) == {
        "conversation_item_added",
        "user_input_transcribed",
        "function_tools_executed",
        "error",
        "close",
    }
    session = Session()
    ChatHistoryClient(path, events=["speech_created"]).attach(session, session_id="room")
    assert set(session.listeners) == {"speech_created"}


class ChatType(enum.Enum):
    AGENT = 2
    NOBODY = 7


class Number(enum.IntEnum):
    TOOL = 3


def messages(path: str, *calls: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The lines that arrive for these calls of ``message``, all of which are taken."""
    with peer_at(path) as peer:
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        for call in calls:
            assert client.message(**{"chat_type": 1, "content": "hello", **call}) is True
        assert client.flush_sync(5)
        assert client.stats.errors == 0
    return peer.archive.all()


def test_a_message_says_who_speaks_by_number_name_or_enum(path: str) -> None:
    spoken = (1, 2, 3, "user", "agent", "tool", ChatType.AGENT, Number.TOOL, Role.USER, 1.0)
    lines = messages(path, *({"chat_type": who} for who in spoken))
    assert [line["chat_type"] for line in lines] == [1, 2, 3, "user", "agent", "tool", 2, 3, "user", 1]
    assert not any(isinstance(line["chat_type"], float) for line in lines)  # 1.0 is refused


@pytest.mark.parametrize(
    "chat_type", [None, ChatType.NOBODY, 0, 4, "1", "assistant", "User", "", True, [1], {}, object(), math.nan, 10**400]
)
def test_a_message_of_nobody_is_refused_before_it_is_sent(path: str, chat_type: Any, caplog: pytest.LogCaptureFixture) -> None:
    with peer_at(path):
        client = ChatHistoryClient(path)
        client.attach(None, session_id="room")
        assert client.message(chat_type, "hello") is False
        assert client.message(chat_type, "hello") is False
    assert (client.stats.enqueued, client.stats.refused, client.stats.errors) == (0, 2, 0)
    assert len(caplog.records) == 1


def test_the_time_of_a_message_may_be_seconds_a_text_or_a_datetime(path: str) -> None:
    aware = datetime.datetime(2025, 9, 24, 13, 49, 33, 250_000, datetime.timezone(datetime.timedelta(hours=5.5)))
    naive = aware.astimezone().replace(tzinfo=None)
    text = "2025-09-24T08:19:33.25Z"
    times = (1758701973, 1758701973.25, decimal.Decimal("1758701973.25"), aware, naive, text)
    lines = messages(path, *({"timestamp": when} for when in times))
    assert [line["timestamp"] for line in lines] == [1758701973, *[1758701973.25] * 4, text]


def test_the_id_of_a_message_is_a_text(path: str) -> None:
    one = uuid.UUID(int=7)
    ids = ("dtmf-7", 7, one, ChatType.NOBODY, "x" * 200)
    assert [line["id"] for line in messages(path, *({"id": given} for given in ids))] == ["dtmf-7", "7", str(one), "7", "x" * 200]


@pytest.mark.parametrize(
    ("field", "unusable"),
    [
        ("timestamp", ["yesterday", "2025-09-24T08:19:33", "2025-13-24T08:19:33Z", math.nan, 10**400, True, [1], b"1", object()]),
        ("timestamp", [datetime.date(2025, 9, 24), datetime.timedelta(1)]),
        ("id", [True, 1.5, [7], {}, object(), b"7", "x" * 201, "line\nend", "\x7f"]),
        ("interrupted", ["yes", 2, [True], object()]),
        ("metadata", [[1], "text", 7, True, object()]),
    ],
)
def test_an_optional_field_the_daemon_would_refuse_does_not_cost_the_sentence(
    path: str, field: str, unusable: List[Any], caplog: pytest.LogCaptureFixture
) -> None:
    before = time.time()
    lines = messages(path, *({field: value} for value in unusable))
    assert [line["content"] for line in lines] == ["hello"] * len(unusable)
    for line in lines:
        assert set(line) == {"type", "chat_type", "content", "timestamp", "seq"}
        assert before <= line["timestamp"] <= time.time()
    assert len(caplog.records) == 1


def test_the_other_fields_of_a_message_arrive_as_they_are(path: str) -> None:
    (line, cleared) = messages(path, {"interrupted": True, "metadata": {"a": [1], 2: None}}, {"interrupted": 0, "metadata": {}})
    assert (line["interrupted"], line["metadata"]) == (True, {"a": [1], "2": None})
    assert (cleared["interrupted"], cleared["metadata"]) == (False, {})


@pytest.mark.parametrize("seed", range(20))
def test_any_event_becomes_one_line_of_strict_json(path: str, seed: int) -> None:
    chance = random.Random(seed)

    def anything(depth: int) -> Any:
        kind = chance.randrange(11 if depth else 8)
        if kind == 0:
            return "".join(
                chr(chance.choice([chance.randrange(0x80), chance.randrange(0xD700, 0xE100), 0x1F42F])) for _ in range(8)
            )
        if kind in (8, 9):
            return [anything(depth - 1) for _ in range(chance.randrange(4))]
        if kind == 10:
            return {chance.choice(["a", "\ud800", 1, None, (1,), 2.5]): anything(depth - 1) for _ in range(chance.randrange(4))}
        return [None, True, -1, 10**30, math.nan, b"\xff\x00", object(), Role.USER][kind]

    events = [Event("conversation_item_added", item=anything(4), other=anything(4), created_at=anything(0)) for _ in range(50)]
    lines = sent(path, *events, close())
    assert [line["seq"] for line in lines] == list(range(1, 52))
    assert {line["type"] for line in lines[:-1]} == {"conversation_item_added"}

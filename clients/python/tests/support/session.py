"""What an AgentSession is to its listeners: the emitter of the framework, and events that dump themselves."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any, Callable, Dict, List, Optional


class Session:
    """Emits as ``livekit.rtc.EventEmitter`` does: a TypeError of a listener comes out, other exceptions do not."""

    def __init__(self) -> None:
        self.listeners: Dict[str, List[Callable[..., Any]]] = {}

    def on(self, name: str, listener: Callable[..., Any]) -> None:
        if asyncio.iscoroutinefunction(listener):
            raise ValueError("Cannot register an async callback")
        self.listeners.setdefault(name, []).append(listener)

    def emit(self, name: str, *args: Any) -> None:
        for listener in list(self.listeners.get(name, ())):
            inspect.signature(listener)
            listener(*args)


class Event:
    """An event as pydantic makes them: fields by name, and a dump that may be told to leave fields out."""

    def __init__(self, type: str, /, **fields: Any) -> None:  # noqa: A002
        self.type = type
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def model_dump(self, *, mode: str, exclude: Any = None, warnings: bool = True) -> Dict[str, Any]:
        assert mode == "json"
        left_out = {field for field, what in (exclude or {}).items() if what is True}
        return {name: _dumped(value) for name, value in self.__dict__.items() if name not in left_out}


def _dumped(value: Any) -> Any:
    if isinstance(value, Event):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_dumped(item) for item in value]
    return value


def item(text: Any, role: str = "user", id: Optional[str] = None, **more: Any) -> Event:  # noqa: A002
    content = text if isinstance(text, list) else [text]
    fields = {"interrupted": False, "created_at": time.time(), **more}
    message = Event("message", id=id or "item_%x" % time.monotonic_ns(), role=role, content=content, **fields)
    return Event("conversation_item_added", item=message, created_at=time.time())


def transcript(text: str, is_final: bool = True) -> Event:
    return Event("user_input_transcribed", transcript=text, is_final=is_final, language="en", created_at=time.time())


def close(reason: str = "user_initiated") -> Event:
    return Event("close", error=None, reason=reason, created_at=time.time())

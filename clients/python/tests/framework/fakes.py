"""A voice pipeline without voices: the framework's own interfaces, driven by a director who knows what is to be said.

Runs on livekit-agents 1.2.8 and on the newest version. Nothing here touches a network, a model or a device.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import time
import uuid
from typing import Any, AsyncIterator, Dict, Optional, Tuple, Union

from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, llm, stt, tts, vad
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN
from livekit.agents.voice import Agent, AgentSession, io
from livekit.agents.voice.transcription import TranscriptSynchronizer

RATE = 24000
SILENCE = rtc.AudioFrame(b"\0\0" * 480, RATE, 1, 480)
Reply = Union[str, Tuple[str, Dict[str, Any]]]
"""What the model says to a sentence: words, or a tool and its arguments."""


def accepted(function: Any, **options: Any) -> Any:
    """Calls with those options that this version knows."""
    known = inspect.signature(function).parameters
    return function(**{name: value for name, value in options.items() if name in known})


class Director:
    """Pushes what the user does into the recogniser and the voice detector, in step."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self.vad: "asyncio.Queue[vad.VADEvent]" = asyncio.Queue()
        self.stt: "asyncio.Queue[stt.SpeechEvent]" = asyncio.Queue()

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds / self.speed)

    def detect(self, kind: vad.VADEventType, spoken: float = 0.0, silent: float = 0.0) -> None:
        speaking = kind is not vad.VADEventType.END_OF_SPEECH
        self.vad.put_nowait(
            vad.VADEvent(
                type=kind,
                samples_index=0,
                timestamp=time.time(),
                speech_duration=spoken,
                silence_duration=silent,
                frames=[SILENCE],
                probability=0.99 if speaking else 0.0,
                speaking=speaking,
            )
        )

    def recognise(self, text: str, final: bool) -> None:
        kind = stt.SpeechEventType.FINAL_TRANSCRIPT if final else stt.SpeechEventType.INTERIM_TRANSCRIPT
        heard = stt.SpeechData(language="en", text=text, confidence=0.97, speaker_id="S0")
        self.stt.put_nowait(stt.SpeechEvent(type=kind, request_id="", alternatives=[heard]))

    async def user_says(self, text: str, *, final: bool = True, ends: bool = True) -> None:
        """Words come one by one as interims; then the final; then silence."""
        self.detect(vad.VADEventType.START_OF_SPEECH, 0.1)
        words, spoken = text.split(), 0.1
        for count in range(1, len(words) + 1):
            for _ in range(4):
                spoken += 0.1 / self.speed
                self.detect(vad.VADEventType.INFERENCE_DONE, spoken)
                await self.wait(0.05)
            if count < len(words) or not final:
                self.recognise(" ".join(words[:count]), final=False)
        await self.wait(0.2)
        if final:
            self.recognise(text, final=True)
            await self.wait(0.1)
        if ends:
            self.detect(vad.VADEventType.END_OF_SPEECH, spoken, 0.5)


class ScriptedVAD(vad.VAD):
    def __init__(self, director: Director) -> None:
        super().__init__(capabilities=vad.VADCapabilities(update_interval=0.1))
        self.director = director

    def stream(self) -> vad.VADStream:
        return _VADStream(self)


class _VADStream(vad.VADStream):
    async def _main_task(self) -> None:
        async def forward() -> None:
            while True:
                self._event_ch.send_nowait(await self._vad.director.vad.get())

        task = asyncio.ensure_future(forward())
        try:
            async for _ in self._input_ch:
                pass
        finally:
            task.cancel()


class ScriptedSTT(stt.STT):
    def __init__(self, director: Director) -> None:
        super().__init__(capabilities=stt.STTCapabilities(streaming=True, interim_results=True))
        self.director = director

    async def _recognize_impl(self, *_: Any, **__: Any) -> stt.SpeechEvent:
        raise NotImplementedError

    def stream(
        self, *, language: Any = NOT_GIVEN, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> stt.RecognizeStream:
        return _STTStream(stt=self, conn_options=conn_options)


class _STTStream(stt.RecognizeStream):
    async def _run(self) -> None:
        async def forward() -> None:
            while True:
                self._event_ch.send_nowait(await self._stt.director.stt.get())

        task = asyncio.ensure_future(forward())
        try:
            async for _ in self._input_ch:
                pass
        finally:
            task.cancel()


class ScriptedLLM(llm.LLM):
    """Answers the last sentence of the user by the book, a tool's result by what it says, and instructions by a stock phrase."""

    def __init__(self, director: Director, book: Dict[str, Reply], after_tool: str, by_itself: str) -> None:
        super().__init__()
        self.director, self.book, self.after_tool, self.by_itself = director, book, after_tool, by_itself

    def chat(
        self, *, chat_ctx: llm.ChatContext, tools: Any = None, conn_options: Any = DEFAULT_API_CONNECT_OPTIONS, **_: Any
    ) -> Any:
        return _LLMStream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class _LLMStream(llm.LLMStream):
    async def _run(self) -> None:
        book: ScriptedLLM = self._llm
        # instructions of generate_reply() stand as a system message after everything else
        last = [item for item in self._chat_ctx.items if item.type in ("message", "function_call_output")][-1]
        reply: Reply
        if last.type == "function_call_output":
            reply = book.after_tool
        elif last.role == "user":
            reply = book.book[last.text_content]
        else:
            reply = book.by_itself
        await book.director.wait(0.1)
        request = uuid.uuid4().hex
        if isinstance(reply, tuple):
            call = llm.FunctionToolCall(name=reply[0], arguments=json.dumps(reply[1]), call_id="call_" + request[:12])
            self._event_ch.send_nowait(llm.ChatChunk(id=request, delta=llm.ChoiceDelta(role="assistant", tool_calls=[call])))
            return
        for piece in re.findall(r"\S+|\s+", reply):
            self._event_ch.send_nowait(llm.ChatChunk(id=request, delta=llm.ChoiceDelta(role="assistant", content=piece)))
            await asyncio.sleep(0)


class SilentTTS(tts.TTS):
    """Silence as long as the words would take."""

    def __init__(self, director: Director) -> None:
        super().__init__(capabilities=tts.TTSCapabilities(streaming=False), sample_rate=RATE, num_channels=1)
        self.director = director
        self.broken = False

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS) -> tts.ChunkedStream:
        return _TTSStream(tts=self, input_text=text, conn_options=conn_options)


class _TTSStream(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        voice: SilentTTS = self._tts
        if voice.broken:
            raise APIError("the voice is out of order", retryable=False)
        output_emitter.initialize(request_id=uuid.uuid4().hex, sample_rate=RATE, num_channels=1, mime_type="audio/pcm")
        seconds = max(0.3, 0.065 * len(self._input_text)) / voice.director.speed
        output_emitter.push(b"\0\0" * int(seconds * RATE))
        output_emitter.flush()


class Microphone(io.AudioInput):
    def __init__(self) -> None:
        super().__init__(label="microphone")

    def __aiter__(self) -> AsyncIterator[rtc.AudioFrame]:
        return self

    async def __anext__(self) -> rtc.AudioFrame:
        await asyncio.sleep(0.02)
        return SILENCE


class Loudspeaker(io.AudioOutput):
    """Plays in real time, as far as the session can tell."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=RATE)
        self._began = self._pushed = 0.0
        self._end: Optional[asyncio.TimerHandle] = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if not self._pushed:
            self._began = time.time()
            if hasattr(self, "on_playback_started"):
                self.on_playback_started(created_at=self._began)
        self._pushed += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._pushed and self._end is None:
            left = max(0.0, self._began + self._pushed - time.time())
            self._end = asyncio.get_running_loop().call_later(left, self._finished, False)

    def clear_buffer(self) -> None:
        if self._end is not None:
            self._end.cancel()
        if self._pushed:
            self._finished(True)

    def _finished(self, interrupted: bool) -> None:
        played = min(self._pushed, time.time() - self._began) if interrupted else self._pushed
        self._pushed, self._end = 0.0, None
        self.on_playback_finished(playback_position=played, interrupted=interrupted, synchronized_transcript=None)


class Screen(io.TextOutput):
    def __init__(self) -> None:
        super().__init__(label="screen", next_in_chain=None)

    async def capture_text(self, text: str) -> None: ...

    def flush(self) -> None: ...


class Stage:
    """A session with all its fakes, not yet started."""

    def __init__(self, book: Dict[str, Reply], *, after_tool: str = "", by_itself: str = "", speed: float = 6.0) -> None:
        self.director = Director(speed)
        self.tts = SilentTTS(self.director)
        self.session: AgentSession = accepted(
            AgentSession,
            stt=ScriptedSTT(self.director),
            vad=ScriptedVAD(self.director),
            llm=ScriptedLLM(self.director, book, after_tool, by_itself),
            tts=self.tts,
            turn_detection="vad",
            min_endpointing_delay=0.4 / speed,
            max_endpointing_delay=2.0 / speed,
            min_interruption_duration=0.3 / speed,
            resume_false_interruption=False,
            false_interruption_timeout=None,
            agent_false_interruption_timeout=None,
            preemptive_generation=False,
            user_away_timeout=None,
            aec_warmup_duration=None,
            session_close_transcript_timeout=2.0 / speed,
        )

    async def start(self, agent: Agent) -> None:
        synchronised = TranscriptSynchronizer(
            next_in_chain_audio=Loudspeaker(), next_in_chain_text=Screen(), speed=self.director.speed
        )
        self.session.input.audio = Microphone()
        self.session.output.audio = synchronised.audio_output
        self.session.output.transcription = synchronised.text_output
        await self.session.start(agent)

    async def quiet(self, within: float = 20.0) -> None:
        """Until the agent has answered and nobody speaks."""
        deadline = time.monotonic() + within
        calm = 0
        while calm < 8:
            assert time.monotonic() < deadline, "the agent does not come to rest: " + str(self.session.agent_state)
            at_rest = self.session.agent_state == "listening" and self.session.user_state != "speaking"
            calm = calm + 1 if at_rest else 0
            await asyncio.sleep(0.1 / self.director.speed)

    async def speaking(self, within: float = 10.0) -> None:
        """Until the agent speaks."""
        deadline = time.monotonic() + within
        while self.session.agent_state != "speaking":
            assert time.monotonic() < deadline, "the agent does not speak"
            await asyncio.sleep(0.01)

"""A chat service in which every signed-in user has a memory of their own.

pip install "memlayer-sdk[local,openai]" fastapi uvicorn
export OPENAI_API_KEY=...
python examples/fastapi_service.py

curl http://127.0.0.1:8000/chat -H "Authorization: Bearer alices-token" -H "Content-Type: application/json" \
     -d '{"text": "I play the cello"}'
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from memlayer import AsyncMemoryStore, AsyncUserMemory, Memory, wrap

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException
    from fastapi.responses import StreamingResponse
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from openai import AsyncOpenAI
    from pydantic import BaseModel
except ImportError as missing:
    print(f'{missing.name} is missing: pip install "memlayer-sdk[local,openai]" fastapi uvicorn')
    raise SystemExit from None

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5.4-mini")
SIGNED_IN = {"alices-token": "alice", "bobs-token": "bob"}  # in place of your sessions or your JWTs


class Said(BaseModel):
    """What a user says, and in which of their conversations."""

    text: str
    session: str = "main"


async def user_id(login: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Whose memory it is. The login alone says so, nothing else in a request."""
    if login.credentials not in SIGNED_IN:
        raise HTTPException(401)
    return SIGNED_IN[login.credentials]


def service(store: AsyncMemoryStore, client: AsyncOpenAI) -> FastAPI:
    """The service. All users share the store and the client; a request wraps the client for the one who asks."""
    app = FastAPI()

    async def memory_of(user: Annotated[str, Depends(user_id)]) -> AsyncUserMemory:
        return store.user(user)

    Own = Annotated[AsyncUserMemory, Depends(memory_of)]

    async def messages(memory: AsyncUserMemory, said: Said) -> list[Any]:
        turns = await memory.history(session=said.session, limit=50)
        return [{"role": turn.role, "content": turn.text} for turn in turns] + [{"role": "user", "content": said.text}]

    @app.post("/chat")
    async def chat(said: Said, memory: Own) -> str:
        own = wrap(client, memory, session=said.session)
        answer = await own.chat.completions.create(model=MODEL, messages=await messages(memory, said))
        return answer.choices[0].message.content or ""

    @app.post("/chat/stream")
    async def stream(said: Said, memory: Own) -> StreamingResponse:
        own = wrap(client, memory, session=said.session)
        events = await own.chat.completions.create(model=MODEL, messages=await messages(memory, said), stream=True)

        async def words() -> AsyncIterator[str]:
            async with events:  # whoever hangs up in the middle ends the request to the model too
                async for event in events:
                    if event.choices:
                        yield event.choices[0].delta.content or ""

        return StreamingResponse(words(), media_type="text/plain")

    @app.get("/memories")
    async def memories(memory: Own) -> list[Memory]:
        return list(await memory.history(limit=100))

    @app.delete("/memories")
    async def erase(memory: Own) -> dict[str, int]:
        return {"erased": (await memory.erase()).memories}

    return app


async def main() -> None:
    """Serves until Ctrl-C."""
    async with AsyncMemoryStore.open("service.db") as store, AsyncOpenAI() as client:
        await uvicorn.Server(uvicorn.Config(service(store, client))).serve()


if __name__ == "__main__":
    if "OPENAI_API_KEY" in os.environ:
        asyncio.run(main())
    else:
        print("Set OPENAI_API_KEY; and OPENAI_BASE_URL and OPENAI_MODEL, if it is not OpenAI that answers")

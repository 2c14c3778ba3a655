"""A pipeline of transformers behind FastAPI, as the documentation of both begins.

python benchmarks/peers/fastapi_handler.py fill-mask MODEL 8001

`/def` is a plain function, which FastAPI runs in its thread pool; `/async` one that runs in the event loop.
"""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Asked(BaseModel):
    """A text."""

    text: str


def build(task: str, model: str) -> FastAPI:
    """Return the application."""
    app = FastAPI()
    pipe = pipeline(task, model=model, top_k=5)

    @app.post("/def")
    def in_a_thread(asked: Asked):
        return pipe(asked.text)

    @app.post("/async")
    async def in_the_loop(asked: Asked):
        return pipe(asked.text)

    return app


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1], sys.argv[2]), port=int(sys.argv[3]), log_level="warning")

"""POST /v1/embeddings: openai's own client gets the vectors of `embed`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy
import openai
import pytest
from live_server import LiveServer

import inference

TEXTS = ["天地玄黃", "宇宙洪荒日月盈昃", "天"]


@pytest.fixture(scope="module")
def server(model_dir):
    with LiveServer(model_dir) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")


def test_openais_client_gets_the_vectors_of_embed_to_the_last_digit(client, loaded):
    answer = client.embeddings.create(model="tiny", input=TEXTS)  # as base64
    vectors = numpy.array([row.embedding for row in answer.data], dtype=numpy.float32)
    assert (vectors == inference.embed(*loaded[:2], TEXTS, "cpu")).all()
    listed = client.embeddings.create(model="tiny", input=TEXTS[0], encoding_format="float").data[0]
    assert (numpy.array(listed.embedding, dtype=numpy.float32) == vectors[0]).all()


def test_token_ids_are_texts_too_and_count_as_usage(client, loaded):
    ids = loaded[1](TEXTS)["input_ids"]
    texts = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    assert client.embeddings.create(model="tiny", input=ids, encoding_format="float").data == texts.data
    assert texts.usage.prompt_tokens == sum(map(len, ids))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": [[10_000]]}, "10000"), ({"input": [[-1]]}, "-1"), ({"input": [5] * 1000}, "1000 個 token"),
        ({"input": ""}, "空"), ({"input": "天", "dimensions": 3}, "3 維"), ({"input": []}, "input"),
        ({"input": ["天", 3]}, "input"),
    ],
)  # fmt: skip
def test_what_has_no_vector_is_refused_with_the_reason(server, body, said):
    status, answer = server.request("/v1/embeddings", body)
    assert status == 422 and said in answer["error"]["message"]


def test_vectors_have_the_same_digits_beside_others_where_a_pass_would_change_them(qwen_dir):
    inputs = [["天地玄黃" * (1 + number % 5), "宇"][: 1 + number % 2] for number in range(24)]
    with LiveServer(qwen_dir) as server:

        def vectors(texts: list[str]) -> list:
            return server.request("/v1/embeddings", {"input": texts})[1]["data"]

        alone = [vectors(texts) for texts in inputs]
        with ThreadPoolExecutor(len(inputs)) as clients:
            assert list(clients.map(vectors, inputs)) == alone

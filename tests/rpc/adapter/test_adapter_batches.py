"""Batches over gRPC: the client, the Adapter and its `mock` provider."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from promptlooper.adapter.app import gateway_from
from promptlooper.adapter.servicer import SERVICE_NAME, AdapterServicer
from promptlooper.batches import MOST_ITEMS, BatchItem, BatchResult, BatchState, SubmittedBatch
from promptlooper.clients.adapter import AdapterClient
from promptlooper.completion import CompletionRequest, Message
from promptlooper.errors import (
    BatchCancelled,
    BatchExpired,
    InvalidArgument,
    ProviderRejected,
    ServiceUnavailable,
    TooLarge,
)
from promptlooper.rpc.client import domain_errors, open_channel
from promptlooper.rpc.server import serving
from promptlooper.v1 import adapter_service_pb2 as pb
from promptlooper.v1.adapter_service_pb2_grpc import AdapterServiceStub
from promptlooper.wire.batches import submitted_to_pb
from promptlooper.wire.limits import LARGEST_MESSAGE

PROVIDERS = """
providers:
  - {name: mine, type: ollama, base_url: "http://127.0.0.1:1"}
  - name: mock
    type: mock
    script:
      - {match: too late, error: {status: 408, code: batch_expired, times: 1}, text: in time}
      - {match: wrong, error: {status: 400, message: no such thing}}
      - {match: slow, delay: 3600, text: done}
      - {match: much, text: "$MUCH"}
      - {echo: true}
"""


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    path = tmp_path / "providers.yaml"
    path.write_text(PROVIDERS.replace("$MUCH", "x" * 3_700_000))
    async with gateway_from(path, env={}) as gateway:
        servicer = AdapterServicer(gateway)
        services = {SERVICE_NAME: servicer.register}
        async with serving("127.0.0.1:0", services, health_listen="127.0.0.1:0", on_drain=servicer.drain) as server:
            yield f"127.0.0.1:{server.port}"


@pytest.fixture
async def client(address: str) -> AsyncIterator[AdapterClient]:
    async with open_channel(address) as channel, AdapterClient(channel, address) as client:
        yield client


def items(*questions: str, model: str = "mock/m") -> list[BatchItem]:
    return [
        BatchItem(f"q-{n}", CompletionRequest(model, (Message("user", question),), {}))
        for n, question in enumerate(questions)
    ]


async def test_many_items_go_there_and_back_in_pieces(client):
    asked = items(*(f"question {n} {'x' * 20_000}" for n in range(600)))
    submitted = await client.submit_batch("mock/m", "b-1", asked)
    status = await client.batch_status(submitted.batch)
    assert (status.state, status.total, status.answered) == (BatchState.ENDED, 600, 600)
    outputs = {each.item_id: each.completion.output async for each in client.batch_results(submitted.batch)}
    assert outputs == {item.item_id: item.request.messages[0].content for item in asked}
    assert await client.submit_batch("mock/m", "b-1", asked, again=True) == submitted


async def test_errors_of_items_are_those_that_were_raised(client):
    submitted = await client.submit_batch("mock/m", "b-1", items("too late", "wrong", "much", "fine"))
    found = {each.item_id: each async for each in client.batch_results(submitted.batch)}
    kinds = [type(found[f"q-{n}"].error) for n in range(4)]
    assert kinds == [BatchExpired, ProviderRejected, TooLarge, type(None)]
    assert found["q-1"].error.metadata == {"provider": "mock", "model": "m", "status": "400"}
    assert (await client.complete(items("too late")[0].request)).output == "in time"


async def test_a_batch_runs_as_long_as_its_slowest_item_or_until_it_is_cancelled(client):
    submitted = await client.submit_batch("mock/m", "b-1", items("slow", "fine"))
    assert (await client.batch_status(submitted.batch)).state is BatchState.RUNNING
    with pytest.raises(InvalidArgument, match="has not ended"):
        _ = [each async for each in client.batch_results(submitted.batch)]
    await client.cancel_batch(submitted.batch)
    errors = [each.error async for each in client.batch_results(submitted.batch)]
    assert [type(error) for error in errors] == [BatchCancelled, BatchCancelled]


async def test_a_batch_that_is_gone_is_unknown(client):
    submitted = await client.submit_batch("mock/m", "b-1", items("hi"))
    lost = submitted.batch.replace(submitted.batch.split(":")[3], "f" * 32)
    assert (await client.batch_status(lost)).state is BatchState.UNKNOWN
    with pytest.raises(ProviderRejected, match="does not know"):
        _ = [each async for each in client.batch_results(lost)]


async def test_what_is_no_batch_is_refused(client):
    with pytest.raises(InvalidArgument, match="1 to 50000"):
        await client.submit_batch("mock/m", "b-1", [])
    with pytest.raises(ProviderRejected, match="answers no batches"):
        await client.submit_batch("mine/m", "b-1", items("hi", model="mine/m"))


async def test_an_item_that_fits_into_no_message_is_refused_alone(client):
    submitted = await client.submit_batch("mock/m", "b-1", items("x" * 3_700_000, "fine"))
    assert [(each.item_id, type(each.error)) for each in submitted.refused] == [("q-0", TooLarge)]
    assert (await client.batch_status(submitted.batch)).total == 1
    alone = await client.submit_batch("mock/m", "b-2", items("x" * 3_700_000))
    assert (alone.batch, len(alone.refused)) == ("", 1)


async def test_a_batch_is_only_looked_for_where_there_are_no_items(client):
    assert not (await client.submit_batch("mock/m", "b-1", [], again=True)).batch
    submitted = await client.submit_batch("mock/m", "b-1", items("hi"))
    assert await client.submit_batch("mock/m", "b-1", [], again=True) == submitted


def test_as_many_items_as_there_may_be_can_be_refused():
    error = ProviderRejected("the parameter 'top_k' has no equivalent at this provider; remove it from 'params'")
    refused = tuple(BatchResult(f"{n:064}", error=error) for n in range(MOST_ITEMS))
    message = submitted_to_pb(SubmittedBatch("", refused))
    assert message.ByteSize() < LARGEST_MESSAGE
    assert len(message.refused) == MOST_ITEMS
    assert message.refused[0].error.message == error.message


async def test_only_the_first_message_names_the_batch(address):
    messages = [pb.SubmitBatchRequest(model="mock/m", label="b"), pb.SubmitBatchRequest(model="mock/other")]
    async with open_channel(address) as channel:
        stub = AdapterServiceStub(channel)
        for sent, words in ((messages, "first message only"), ([], "there is no message")):
            with pytest.raises(InvalidArgument, match=words), domain_errors(address):
                await stub.SubmitBatch(iter(sent))


async def test_an_adapter_that_is_away_is_not_the_batchs_fault():
    async with open_channel("127.0.0.1:1") as channel, AdapterClient(channel, "127.0.0.1:1") as client:
        with pytest.raises(ServiceUnavailable):
            await client.batch_status("b1:mock:000000000000:x:m")

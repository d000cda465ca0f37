"""Where a stage gets its answer that is asked by batches: the cache, or a batch that its run waits for."""

from __future__ import annotations

from dataclasses import replace

from promptlooper.digest import sha256_hex
from promptlooper.experiment import CacheMode
from promptlooper.questions import Question, cache_key
from promptlooper.runner.answers import Answer, Answers
from promptlooper.runner.claims import Claim
from promptlooper.runner.outcomes import BatchQuestion
from promptlooper.runner.store.rows import storable_completion
from promptlooper.v1 import adapter_service_pb2 as adapter_pb
from promptlooper.v1 import completion_pb2 as pb
from promptlooper.wire.completion import completion_from_pb, error_from_pb, request_to_pb

BATCH = "BATCH"  # why a run waits


class WaitsForBatch(Exception):
    """The run goes back until a batch has answered this."""

    def __init__(self, item: BatchQuestion) -> None:
        super().__init__(item.item_id)
        self.item = item


async def batched(answers: Answers, question: Question, claim: Claim) -> Answer:
    """Raises WaitsForBatch, or the error that the question's item ended with."""
    item = claim.item
    if item is None or item.position != claim.next_stage:
        if (found := await answers.find(question)) is not None:
            return found
        raise WaitsForBatch(_item(question, claim))
    if item.state == "DIRECT":
        return await answers.ask(question)
    if item.state == "FAILED":
        raise error_from_pb(adapter_pb.CompletionError.FromString(item.result))
    if item.state != "ANSWERED":
        raise WaitsForBatch(_item(question, claim))
    completion = storable_completion(completion_from_pb(pb.Completion.FromString(item.result)))
    await answers.keep(question, completion)
    return Answer(completion, cached=item.shared, batched=True)


def _item(question: Question, claim: Claim) -> BatchQuestion:
    # As between calls at once: only what is read from the cache and written to it is shared.
    shared = question.policy.mode is CacheMode.READ_WRITE
    item_id = sha256_hex(cache_key(question)) if shared else f"run-{claim.run_index}-{claim.next_stage}"
    request = request_to_pb(replace(question.request, timeout=0, once=False))
    return BatchQuestion(claim.next_stage, item_id, question.request.model, request.SerializeToString())

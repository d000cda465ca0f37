"""Where a stage gets its answer that is asked by batches: the cache, or a batch that its run waits for."""

from __future__ import annotations

from promptlooper.digest import sha256_hex
from promptlooper.experiment import CacheMode
from promptlooper.questions import Question, cache_key
from promptlooper.runner.answers import Answer, Answers
from promptlooper.runner.batch_texts import answer_of, error_of, request_text
from promptlooper.runner.claims import Claim
from promptlooper.runner.outcomes import BatchQuestion

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
        raise error_of(item.result)
    if item.state != "ANSWERED":
        raise WaitsForBatch(_item(question, claim))
    completion = answer_of(item.result)
    await answers.keep(question, completion)
    return Answer(completion, cached=item.shared, batched=True)


def _item(question: Question, claim: Claim) -> BatchQuestion:
    # As between calls at once: only what is read from the cache and written to it is shared.
    shared = question.policy.mode is CacheMode.READ_WRITE
    item_id = sha256_hex(cache_key(question)) if shared else f"run-{claim.run_index}-{claim.next_stage}"
    return BatchQuestion(claim.next_stage, item_id, question.request.model, request_text(question.request))

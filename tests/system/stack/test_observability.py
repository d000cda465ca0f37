"""What a whole stack shows of real runs: one trace of each, metrics, events with their place in the trace."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nats
import promql_parser
import pytest
import pytest_asyncio
import yaml
from otlp_lab import Collector, SpanSeen, collector, tree
from prometheus_client.parser import text_string_to_metric_families
from stack_lab import CommandLine

from promptlooper.testing.provider import FakeProvider, ProviderRequest, Reply, error

ROOT = Path(__file__).parents[3]
OBSERVABILITY = ROOT / "deploy" / "observability"
CANARY = "canary-7d1f"  # in prompts, inputs, answers and the provider's errors
EXPERIMENT = f"""\
name: capitals
inputs: [{{country: France, expected: Paris}}]
model: shop/fast
pipelines:
  reasoned:
    stages:
      - {{name: think, prompt: "{CANARY} Where is {{{{ input.country }}}}?"}}
      - {{prompt: "{{{{ prev_output }}}} So the capital is"}}
scorers: [{{icontains: "{{{{ expected }}}}"}}]
"""
REFUSED = f'name: refused\nmodel: shop/fast\nprompt: "refuse {CANARY}"\n'
PROVIDERS = """\
providers:
  - name: shop
    type: openai
    base_url: {url}
    limits: {{max_concurrency: 4}}
    prices: {{fast: {{input_usd_per_mtok: 1000, output_usd_per_mtok: 1000}}}}
"""
CLIENT, PRODUCER = 3, 4


def provider_says(request: ProviderRequest) -> Reply:
    if "refuse" in request.question:
        return error(400, f"what is {CANARY}?")
    return Reply(f"Paris {CANARY}")


@dataclass
class Observed:
    collector: Collector
    metrics: dict[str, str] = field(default_factory=dict)  # exposition by kind of service
    headers: list[dict[str, str]] = field(default_factory=list)  # of events
    log: str = ""

    def trace_of(self, run_state: str) -> list[SpanSeen]:
        """The trace that holds a run that ended so."""
        run = next(s for s in self.collector.spans if s.attributes.get("promptlooper.run.state") == run_state)
        return self.collector.trace(run.trace_id)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def observed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Observed]:
    """Two runs on a stack that is traced, one of which the provider refuses, after one answer of 429."""
    folder = tmp_path_factory.mktemp("observability")
    async with collector() as traces, FakeProvider(provider_says) as provider:
        provider.script.append(error(429, "slow down", retry_after="0"))
        (folder / "providers.yaml").write_text(PROVIDERS.format(url=provider.base_url))
        promptlooper = CommandLine(folder, {**traces.environment(), "PROMPTLOOPER_LOG_FORMAT": "json"})
        found = Observed(traces)
        try:
            up = ("up", "-d", "--port-base", "0", "--providers", "providers.yaml")
            assert (await asyncio.to_thread(promptlooper, *up)).returncode == 0
            for name, text, code in (("good", EXPERIMENT, 0), ("good", EXPERIMENT, 0), ("bad", REFUSED, 1)):
                (folder / f"{name}.yaml").write_text(text)
                ran = await asyncio.to_thread(promptlooper, "run", f"{name}.yaml", "--server", promptlooper.server())
                assert ran.returncode == code, ran.stdout + ran.stderr
            parts = {row["kind"]: row for row in promptlooper.status()}
            for kind in ("runner", "adapter", "cache", "scorer"):
                found.metrics[kind] = await asyncio.to_thread(scraped, parts[kind]["metrics_address"])
            found.headers = await headers_of_events(parts["nats"]["address"])
        finally:
            await asyncio.to_thread(promptlooper, "down")
        found.log = (promptlooper.data / "logs" / "up.log").read_text()
        yield found


def scraped(address: str) -> str:
    with urlopen(f"http://{address}/metrics", timeout=10) as response:
        text: bytes = response.read()
    return text.decode()


async def headers_of_events(address: str) -> list[dict[str, str]]:
    client = await nats.connect(f"nats://{address}")
    subscription = await client.jetstream().subscribe("promptlooper.v1.events.>", ordered_consumer=True)
    found: list[dict[str, str]] = []
    kinds: list[str] = []
    while sum(kind.startswith("experiment.") and kind.endswith("completed") for kind in kinds) < 3:
        message = await subscription.next_msg(10)
        kinds.append(".".join(message.subject.split(".")[-2:]))
        found.append({**(message.headers or {}), "kind": kinds[-1]})
    await client.close()
    return found


def only(spans: list[SpanSeen], service: str, name: str) -> SpanSeen:
    found = [span for span in spans if (span.service, span.name) == (f"promptlooper-{service}", name)]
    assert len(found) == 1, tree(spans)
    return found[0]


async def test_one_trace_leads_from_the_client_to_the_provider_the_scorer_and_the_event(observed: Observed) -> None:
    spans = observed.trace_of("COMPLETED")
    print(f"\n{tree(spans)}")
    by_id = {span.span_id: span for span in spans}

    def path(span: SpanSeen) -> list[str]:
        names = [f"{span.service.removeprefix('promptlooper-')}: {span.name}"]
        return path(by_id[span.parent_id]) + names if span.parent_id else names

    created = ["cli: promptlooper run", "runner: promptlooper.v1.RunnerService/CreateExperiment"]
    stage = [*created, "runner: run", "runner: stage"]
    paths = [path(span) for span in spans]
    assert paths.count(stage) == 2
    assert paths.count([*stage, "runner: cache lookup", "cache: lookup"]) == 2
    assert paths.count([*stage, "cache: store"]) == 2
    assert paths.count([*stage, "adapter: chat fast", "adapter: attempt"]) == 3  # one was answered with 429
    assert paths.count([*created, "runner: run", "scorer: score"]) == 1
    assert paths.count([*created, "runner: run", "runner: publish"]) == 4
    assert only(spans, "runner", "run").attributes["promptlooper.run.score"] == 1.0


async def test_a_question_is_told_of_in_the_words_of_the_genai_conventions(observed: Observed) -> None:
    spans = observed.trace_of("COMPLETED")
    chat = min((span for span in spans if span.name == "chat fast"), key=lambda span: span.start)
    assert chat.kind == CLIENT
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "shop",
        "gen_ai.request.model": "fast",
        "gen_ai.response.model": "fast",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 4,
        "gen_ai.usage.output_tokens": 2,
        "promptlooper.attempts": 2,
    }
    first, second = sorted((s for s in spans if s.parent_id == chat.span_id), key=lambda span: span.start)
    assert (first.failed, first.attributes["error.type"]) == (True, "rate_limited")
    assert first.attributes["http.response.status_code"] == 429
    assert (second.failed, second.attributes) == (False, {"server.address": "127.0.0.1"})


async def test_a_run_that_fails_says_why_in_its_trace(observed: Observed) -> None:
    spans = observed.trace_of("FAILED")
    failed = [span for span in spans if span.failed and span.name in ("run", "stage", "chat fast")]
    assert [span.attributes["error.type"] for span in failed] == ["PROVIDER_REJECTED"] * 3


async def test_an_answer_of_the_cache_is_a_hit_in_the_trace_and_asks_no_provider(observed: Observed) -> None:
    hits = [s for s in observed.collector.spans if s.attributes.get("promptlooper.cache.result") == "hit"]
    assert len({span.trace_id for span in hits}) == 1
    names = {span.name for span in observed.collector.trace(hits[0].trace_id)}
    assert "stage" in names
    assert "chat fast" not in names


async def test_events_carry_the_place_of_their_publication_in_the_runs_trace(observed: Observed) -> None:
    publications = {f"00-{s.trace_id}-{s.span_id}-01": s for s in observed.collector.spans if s.kind == PRODUCER}
    assert observed.headers
    for headers in observed.headers:
        assert publications[headers["traceparent"]].attributes["promptlooper.event.kind"] == headers["kind"]


async def test_no_prompt_input_or_answer_is_in_a_trace_a_metric_or_a_log(observed: Observed) -> None:
    assert CANARY.encode() not in observed.collector.raw
    assert CANARY not in "".join(observed.metrics.values())
    assert CANARY not in observed.log


async def test_logs_are_json_objects_that_name_service_level_and_time(observed: Observed) -> None:
    services = set()
    for line in observed.log.splitlines():
        name, _, said = line.partition(" | ")
        if said.startswith("{"):
            entry = json.loads(said)
            assert {"time", "level", "service", "message"} <= entry.keys()
            services.add((name.strip(), entry["service"]))
    assert services == {(f"{kind}-0", kind) for kind in ("runner", "adapter", "cache", "scorer")}


def exposed(observed: Observed) -> dict[str, set[str]]:
    """Labels by the name of each sample that some service exposes."""
    found: dict[str, set[str]] = {}
    for text in observed.metrics.values():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def asked(expression: str) -> list[tuple[str, set[str]]]:
    """Every metric of a PromQL expression with the labels that it is asked by. Raises ValueError where it is wrong."""
    expression = expression.replace("$__rate_interval", "5m")
    promql_parser.parse(expression)
    found = []
    for name, matchers in re.findall(r"\b(promptlooper_\w+|process_\w+|up)\b(\{[^}]*\})?", expression):
        found.append((name, set(re.findall(r"(\w+)\s*[=!]~?=?\"", matchers))))
    return found


def grouped(expression: str) -> set[str]:
    labels = re.findall(r"\bby \(([^)]*)\)", expression)
    return {label.strip() for group in labels for label in group.split(",")}


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    document = json.loads((OBSERVABILITY / "dashboard.json").read_text())
    return [panel for panel in document["panels"] if panel["type"] != "row"]


OF_PROMETHEUS = {"job", "instance"}


async def test_every_metric_of_rules_and_dashboard_is_exposed_with_its_labels(observed: Observed) -> None:
    known = {name: labels | OF_PROMETHEUS for name, labels in exposed(observed).items()} | {"up": OF_PROMETHEUS}
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    wrong = []
    for expression in expressions:
        metrics = asked(expression)
        wrong += [f"{name} in {expression}" for name, labels in metrics if not labels <= known.get(name, set())]
        of_any = set().union(*(known.get(name, set()) for name, _ in metrics))
        wrong += [f"by ({label}) in {expression}" for label in grouped(expression) - of_any]
    assert not wrong
    print(
        f"\n{len(rules())} rules and {len(panels())} panels ask for metrics that are exposed: {len(expressions)} parsed"
    )


async def test_the_table_of_metrics_is_what_services_expose(observed: Observed) -> None:
    table = dict(
        re.findall(r"^\| `(promptlooper_\w+)` \| (\w+) \|", (ROOT / "docs/observability.md").read_text(), re.M)
    )
    found = {}
    for text in observed.metrics.values():
        for family in text_string_to_metric_families(text):
            if family.name.startswith("promptlooper_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                found[name] = family.type
    assert table == found


async def test_metrics_tell_what_happened(observed: Observed) -> None:
    values: dict[tuple[str, str], float] = {}
    for text in observed.metrics.values():
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name, ",".join(sorted(sample.labels.values()))] = sample.value
    assert values["promptlooper_runs_ended_total", "completed"] == 2
    assert values["promptlooper_runs_ended_total", "failed"] == 1
    assert values["promptlooper_stage_answers_total", "cache"] == 2
    assert values["promptlooper_cache_lookups_total", "hit"] == 2
    assert values["promptlooper_provider_attempts_total", "fast,ok,shop"] == 2
    assert values["promptlooper_completions_total", "PROVIDER_REJECTED,shop"] == 1
    assert values["promptlooper_cache_saved_usd_total", ""] == values["promptlooper_cost_usd_total", "fast,shop"] > 0
    assert values["promptlooper_claimable_runs", ""] == 0
    assert values["promptlooper_database_up", ""] == values["promptlooper_nats_up", ""] == 1
    assert values["promptlooper_rpc_handled_total", "OK,RunnerService/CreateExperiment"] == 3


def test_every_alert_has_a_runbook_of_its_name() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    headings = set(re.findall(r"^### (PromptLooper\w+)$", text, re.M))
    assert {rule["alert"] for rule in rules()} == headings


def test_rules_say_how_urgent_they_are_and_what_is_wrong() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "warn")
        assert rule["annotations"]["summary"]


def test_the_scrape_example_names_the_job_and_ports_that_the_rules_expect() -> None:
    document = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
    (job,) = document["scrape_configs"]
    assert job["job_name"] == "promptlooper"
    assert job["static_configs"][0]["targets"] == [f"127.0.0.1:{port}" for port in (7251, 7252, 7253, 7254)]
    assert all((OBSERVABILITY / name).exists() for name in document["rule_files"])

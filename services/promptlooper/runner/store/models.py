"""The tables. Times are integer microseconds since the epoch, money integer nano-USD, free values JSON text.

Everything that changes an experiment's rows takes its progress row first and only that one, so there are no cycles and
no foreign keys to hot rows.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

experiments = Table(
    "experiments",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("tags_json", Text, nullable=False),
    Column("metadata_json", Text, nullable=False),
    Column("spec_json", Text, nullable=False),  # the normal form without its inputs
    Column("created_us", BigInteger, nullable=False),
    Column("spec_sha256", String(64), nullable=False, server_default=""),  # of the whole normal form; "" is not known
    Column("traceparent", String(55)),  # of who created it, where that is traced
    Index("experiments_newest", "created_us", "experiment_id"),
    Index("experiments_newest_of_project", "project", "created_us", "experiment_id"),
)

inputs = Table(
    "inputs",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("chunk", Integer, primary_key=True),  # 200 rows each
    Column("rows_json", Text, nullable=False),
)

# The one hot row of an experiment, and its lock: no index on what changes, and room on the page for new versions.
progress = Table(
    "progress",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    Column("generation", Integer, nullable=False, server_default="1"),
    Column("total", BigInteger, nullable=False),
    Column("next_index", BigInteger, nullable=False, server_default="0"),  # runs from here on have no row yet
    Column("running", BigInteger, nullable=False, server_default="0"),
    Column("returned", BigInteger, nullable=False, server_default="0"),  # PENDING with a row
    Column("completed", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("cancelled", BigInteger, nullable=False, server_default="0"),
    Column("cached", BigInteger, nullable=False, server_default="0"),
    Column("max_concurrency", Integer, nullable=False),
    Column("budget_nanousd", BigInteger),
    Column("spent_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("uncertain_nanousd", BigInteger, nullable=False, server_default="0"),  # of calls that were given up
    Column("reserved_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("unit_nanousd", BigInteger, nullable=False, server_default="0"),  # what one call reserves
    Column("budget_tokens", BigInteger),
    Column("spent_tokens", BigInteger, nullable=False, server_default="0"),  # paid ones
    Column("uncertain_tokens", BigInteger, nullable=False, server_default="0"),
    Column("reserved_tokens", BigInteger, nullable=False, server_default="0"),
    Column("unit_tokens", BigInteger, nullable=False, server_default="0"),
    Column("tokens_in", BigInteger, nullable=False, server_default="0"),
    Column("tokens_out", BigInteger, nullable=False, server_default="0"),
    Column("cost_unknown_calls", BigInteger, nullable=False, server_default="0"),
    Column("cost_saved_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("event_seq", BigInteger, nullable=False, server_default="0"),
    Column("started_us", BigInteger),
    Column("ended_us", BigInteger),
    Column("timeout_us", BigInteger),  # limits.experiment_timeout
    Column("deadline_us", BigInteger),  # when its time is over
    Column("first_event_seq", BigInteger, nullable=False, server_default="1"),  # events before it are not kept
    Column("in_batch", BigInteger, nullable=False, server_default="0"),  # PENDING ones that wait for a batch
    Column("batch_keeper", String(63)),  # the Runner that keeps its batches
    postgresql_with={"fillfactor": 50},
)

# A row exists from a run's first claim on.
runs = Table(
    "runs",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("run_index", BigInteger, primary_key=True),
    Column("state", String(16), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("variant_index", Integer, nullable=False),
    Column("owner", String(63)),
    Column("lease_epoch", Integer, nullable=False),
    Column("next_stage", Integer, nullable=False, server_default="0"),  # how many calls have an answer
    Column("not_before_us", BigInteger, nullable=False, server_default="0"),
    Column("deadline_us", BigInteger),  # of a stage that was parked
    Column("run_deadline_us", BigInteger),  # where limits.run_timeout is set
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("reserved_nanousd", BigInteger, nullable=False, server_default="0"),  # while PENDING: what it needs
    Column("reserved_tokens", BigInteger, nullable=False, server_default="0"),
    Column("error_json", Text),
    Column("tokens_in", BigInteger, nullable=False, server_default="0"),
    Column("tokens_out", BigInteger, nullable=False, server_default="0"),
    Column("tokens_reasoning", BigInteger, nullable=False, server_default="0"),
    Column("tokens_cached_in", BigInteger, nullable=False, server_default="0"),
    Column("cost_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("cost_unknown_calls", Integer, nullable=False, server_default="0"),
    Column("cost_saved_nanousd", BigInteger, nullable=False, server_default="0"),
    Column("latency_ms", BigInteger, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("paid_calls", Integer, nullable=False, server_default="0"),  # answers that were not cached
    Column("score", Float),
    Column("passed", Boolean),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger),
    Column("in_batch", Boolean, nullable=False, server_default=text("false")),  # PENDING, until its batch has an answer
    Index(
        "runs_pending",
        "experiment_id",
        "not_before_us",
        sqlite_where=text("state = 'PENDING'"),
        postgresql_where=text("state = 'PENDING'"),
    ),
    Index(
        "runs_cheapest",
        "experiment_id",
        "reserved_nanousd",
        "reserved_tokens",
        sqlite_where=text("state = 'PENDING'"),
        postgresql_where=text("state = 'PENDING'"),
    ),
    Index("runs_owner", "owner", sqlite_where=text("state = 'RUNNING'"), postgresql_where=text("state = 'RUNNING'")),
    Index(
        "runs_cancel_requested",
        "owner",
        sqlite_where=text("cancel_requested AND state = 'RUNNING'"),
        postgresql_where=text("cancel_requested AND state = 'RUNNING'"),
    ),
    postgresql_with={"fillfactor": 70},
    sqlite_with_rowid=False,
)

stage_results = Table(
    "stage_results",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("run_index", BigInteger, primary_key=True),
    Column("stage_index", Integer, primary_key=True),
    Column("iteration", Integer, primary_key=True, server_default="0"),  # which item of for_each
    Column("round", Integer, primary_key=True, server_default="0"),  # which call of that item
    Column("lease_epoch", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("messages_json", Text, nullable=False),
    Column("output", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_requested", Text, nullable=False),
    Column("params_json", Text, nullable=False),
    Column("tokens_in", BigInteger),
    Column("tokens_out", BigInteger),
    Column("tokens_reasoning", BigInteger),
    Column("tokens_cached_in", BigInteger),
    Column("latency_ms", BigInteger, nullable=False),
    Column("ttft_ms", BigInteger),
    Column("cost_nanousd", BigInteger),
    Column("cost_saved_nanousd", BigInteger),
    Column("cached", Boolean, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("finish_reason", Text, nullable=False),
    Column("reasoning", Text),
    Column("error_json", Text),  # of a stage that got no answer, or none that could be used
    Column("tool_calls_json", Text),
    Column("tokens_cache_write_in", BigInteger),
    Column("logprobs_json", Text),
    Column("provider_data", Text, nullable=False, server_default=""),
    Column("price_version", Text, nullable=False, server_default=""),
    Column("batched", Boolean, nullable=False, server_default=text("false")),  # the answer came by a batch
)

CALL_ORDER = (
    stage_results.c.run_index,
    stage_results.c.stage_index,
    stage_results.c.iteration,
    stage_results.c.round,
)

# A question that waits for a batch, is in one, or has its answer from one. A run has one at a time; it goes in the
# transaction that stores the answer with the run.
batch_items = Table(
    "batch_items",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("run_index", BigInteger, primary_key=True),
    Column("position", Integer, nullable=False),  # of the call in its run
    Column("item_id", String(64), nullable=False),  # equal questions that may share an answer have the same
    Column("model", Text, nullable=False),  # provider/model
    Column("state", String(16), nullable=False),
    Column("batch_id", String(63)),
    Column("size", Integer, nullable=False),  # of the request, in bytes
    Column("request", Text, nullable=False),
    Column("result", Text),  # the answer, or the error of one that failed
    Column("shared", Boolean, nullable=False, server_default=text("false")),  # another run pays for the answer
    Column("added_us", BigInteger, nullable=False),
    Index(
        "batch_items_waiting",
        "experiment_id",
        "model",
        "run_index",
        sqlite_where=text("state = 'WAITING'"),
        postgresql_where=text("state = 'WAITING'"),
    ),
    Index("batch_items_of_batch", "batch_id"),
    Index("batch_items_equal", "experiment_id", "item_id"),
)

# Batches at providers: a row is there before its batch is, until its results are stored.
batches = Table(
    "batches",
    metadata,
    Column("batch_id", String(63), primary_key=True),  # the provider knows it as the label
    Column("experiment_id", String(63), nullable=False),
    Column("model", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("handle", Text, nullable=False, server_default=""),  # what the Adapter takes
    Column("stop_reason", String(16), nullable=False, server_default=""),  # why it is being cancelled
    Column("created_us", BigInteger, nullable=False),
    Column("deadline_us", BigInteger, nullable=False),  # then it is cancelled
    Index("batches_of_experiment", "experiment_id"),
)

scores = Table(
    "scores",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("run_index", BigInteger, primary_key=True),
    Column("score_index", Integer, primary_key=True),  # in the order of the spec's scorers
    Column("variant_index", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("value", Float),
    Column("passed", Boolean),
    Column("weight", Float, nullable=False),
    Column("explanation", Text, nullable=False),
    Column("error", Text),
    Column("metadata_json", Text, nullable=False),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("event_seq", BigInteger, primary_key=True),
    Column("run_index", BigInteger),
    Column("kind", String(40), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("detail_json", Text, nullable=False),
    sqlite_with_rowid=False,
)

runners = Table(
    "runners",
    metadata,
    Column("runner_id", String(63), primary_key=True),  # new at every process start
    Column("name", String(63), nullable=False, server_default=""),  # the same at every start of a replica; "" for none
    Column("lease_until_us", BigInteger, nullable=False),  # by the database's clock
    Column("dead", Boolean, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("experiment_id", String(63), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

# What is left of a deleted experiment: its last event, for NATS, and that deleting it again is no mistake.
deleted = Table(
    "deleted",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("project", String(40), nullable=False),
    Column("event_seq", BigInteger, nullable=False),  # of experiment.deleted
    Column("generation", Integer, nullable=False),
    Column("deleted_us", BigInteger, nullable=False),
    Column("detail_json", Text, nullable=False),
    Column("published", Boolean, nullable=False, server_default=text("false")),
)

relay = Table(
    "relay",
    metadata,
    Column("experiment_id", String(63), primary_key=True),
    Column("published_seq", BigInteger, nullable=False),
)

# Files that experiments sent as sources name, by what they hold.
uploads = Table(
    "uploads",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("used_us", BigInteger, nullable=False),  # the last time that a piece came or the file was read
)

upload_pieces = Table(
    "upload_pieces",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("piece", Integer, primary_key=True),  # of 1 MiB each, but the last
    Column("data", LargeBinary, nullable=False),
)

// A live counter of the runs of every experiment, by state, from PromptLooper's events on NATS.
//
//   node counter.mjs                                   everything the stream holds, then live
//   node counter.mjs --experiment ID --until-ended     ends with the experiment
//   node counter.mjs --from 1200                       from a sequence of the stream; or `new`
//
// Where NATS is, and who we are there, say the variables of NATS's own tools: NATS_URL, NATS_CREDS or NATS_USER and
// NATS_PASSWORD.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { DeliverPolicy, jetstream } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";
import protobuf from "protobufjs";

const STREAM = "PROMPTLOOPER_EVENTS";
const STATES = {
  "run.started": "running",
  "run.waiting": "waiting",
  "run.completed": "completed",
  "run.failed": "failed",
  "run.cancelled": "cancelled",
};
const ENDS = ["experiment.completed", "experiment.cancelled", "experiment.failed"];

// The proto is read as it is; where there are many messages, generate code instead, as examples/clients/node does.
const root = new protobuf.Root();
const protos = fileURLToPath(new URL("../../../protos/", import.meta.url));
root.resolvePath = (_, name) => (name.startsWith("google/") ? name : protos + name);
const Event = root.loadSync("promptlooper/v1/events.proto").lookupType("promptlooper.v1.Event");

/** The runs of one experiment. A run that is retried moves on from the state that it had. */
class Count {
  lastEventSeq = 0;
  states = new Map();
  runs = Object.fromEntries(Object.values(STATES).map((state) => [state, 0]));

  /** Whether the event is news: after a failure NATS may deliver one again. */
  takes(event) {
    const eventSeq = Number(event.eventSeq);
    if (eventSeq <= this.lastEventSeq) return false;
    this.lastEventSeq = eventSeq;
    const state = STATES[event.kind];
    if (state !== undefined) {
      const before = this.states.get(event.runId);
      if (before !== undefined) this.runs[before]--;
      this.runs[state]++;
      this.states.set(event.runId, state);
    }
    return true;
  }

  toString() {
    const counted = Object.values(STATES).map((state) => `${this.runs[state]} ${state}`);
    return `${counted.join(", ")} (event ${this.lastEventSeq})`;
  }
}

/** On a terminal a line is overwritten by the next one unless it stays. */
function show(line, { stays }) {
  process.stdout.write(process.stdout.isTTY ? `\r\x1b[2K${line}${stays ? "\n" : ""}` : `${line}\n`);
}

function startOf(where) {
  if (where === "all") return { deliver_policy: DeliverPolicy.All };
  if (where === "new") return { deliver_policy: DeliverPolicy.New };
  if (/^\d+$/.test(where)) return { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: Number(where) };
  throw new Error(`--from is all, new or a sequence of the stream, not '${where}'`);
}

function readArguments() {
  const { values } = parseArgs({
    options: {
      project: { type: "string", default: "*" },
      experiment: { type: "string", default: "*" },
      from: { type: "string", default: "all" },
      "until-ended": { type: "boolean", default: false },
    },
  });
  return { ...values, start: startOf(values.from) };
}

/** Says that NATS is away, or refuses something; the client connects again by itself. */
async function report(client) {
  for await (const { type, error } of client.status()) {
    if (type === "disconnect" || type === "error") console.error(`NATS: ${error?.message ?? type}`);
  }
}

async function count({ project, experiment, start, "until-ended": untilEnded }) {
  const { NATS_URL = "nats://127.0.0.1:4222", NATS_CREDS, NATS_USER, NATS_PASSWORD } = process.env;
  const client = await connect({
    servers: NATS_URL,
    user: NATS_USER,
    pass: NATS_PASSWORD,
    authenticator: NATS_CREDS ? credsAuthenticator(readFileSync(NATS_CREDS)) : undefined,
    inboxPrefix: NATS_USER ? `_INBOX_${NATS_USER}` : undefined, // the only inbox that permissions.conf allows us
    maxReconnectAttempts: -1,
  });
  report(client);
  // Ordered: the client makes the consumer again where a message was lost, from there on. Nothing is acknowledged.
  const consumer = await jetstream(client).consumers.get(STREAM, {
    filter_subjects: `promptlooper.v1.events.${project}.${experiment}.>`,
    ...start,
  });
  const counts = new Map();
  for await (const message of await consumer.consume()) {
    const event = Event.decode(message.data);
    if (event.kind === "experiment.deleted") {
      counts.delete(event.experimentId);
      continue;
    }
    const counted = counts.get(event.experimentId) ?? new Count();
    counts.set(event.experimentId, counted);
    if (!counted.takes(event)) continue;
    const hasEnded = ENDS.includes(event.kind);
    show(`${event.experimentId} ${event.experiment?.state || "RUNNING"}: ${counted}`, { stays: hasEnded });
    if (hasEnded && untilEnded) break;
  }
  await client.close();
}

function fail(why, exitCode) {
  console.error(why);
  process.exit(exitCode);
}

let options;
try {
  options = readArguments();
} catch (error) {
  fail(`${error.message}\nusage: node counter.mjs [--project NAME] [--experiment ID] [--from all|new|SEQUENCE] [--until-ended]`, 2);
}
await count(options).catch((error) => fail(`NATS: ${error.message}`, 1));

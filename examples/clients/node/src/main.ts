// Submits an experiment file to a Runner, follows it to its end, prints the summary and exports the rows.
import { createHash, randomUUID } from "node:crypto";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { basename, dirname, isAbsolute, join, relative } from "node:path";
import { parseArgs } from "node:util";
import { ExperimentState, type Experiment, type ExperimentSummary } from "../gen/promptlooper/v1/experiment.js";
import { Run } from "../gen/promptlooper/v1/run.js";
import { RunnerServiceService as runner, type ExperimentSource } from "../gen/promptlooper/v1/runner_service.js";
import { CallFailed, Connection, WrongUsage } from "./connection.js";

const USAGE = `usage: node dist/src/main.js [options] EXPERIMENT_FILE
  -o, --output FILE  where the rows go, a line of JSON each (default: rows.jsonl)
  --request-id ID    goes on with what an earlier call with this ID submitted
  --server ADDRESS   HOST:PORT (default: PROMPTLOOPER_SERVER, else 127.0.0.1:7051)
  --token-file FILE  a bearer token (default: PROMPTLOOPER_SERVER_TOKEN_FILE)
  --ca-file FILE     TLS, with these certificate authorities (default: PROMPTLOOPER_SERVER_CA_FILE)
exit code: 0 all went well, 1 it did not or a gate is missed, 2 usage or the experiment file is wrong`;
const PIECE = 1024 * 1024;

/** Stores the experiment as its file has it, and sends the files that the server asks for. */
async function submit(connection: Connection, file: string, requestId: string): Promise<Experiment> {
  const source: ExperimentSource = { path: basename(file), text: readFileSync(file, "utf8"), files: [] };
  for (;;) {
    try {
      const request = { spec: undefined, source, requestId };
      const { experiment } = await connection.call(runner.createExperiment, request);
      return experiment!;
    } catch (error) {
      if (!(error instanceof CallFailed && error.reason === "FILES_MISSING")) throw error;
      const sent = new Set(source.files.map((each) => each.path));
      const missing = error.missing.filter((path) => !sent.has(path));
      if (missing.length === 0) throw error;
      for (const path of missing) source.files.push(await upload(connection, dirname(file), path));
    }
  }
}

async function upload(connection: Connection, folder: string, path: string) {
  // The server says which files it wants: it gets none from outside the experiment's folder.
  const inside = relative(folder, join(folder, path));
  if (isAbsolute(path) || inside.startsWith("..")) throw new WrongUsage(`${path} is outside the experiment's folder`);
  const bytes = readFileSync(join(folder, path));
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  const size = BigInt(bytes.length);
  for (let offset = 0; offset === 0 || offset < bytes.length; offset += PIECE) {
    const data = bytes.subarray(offset, offset + PIECE);
    await connection.call(runner.uploadFile, { sha256, size, offset: BigInt(offset), data });
  }
  console.error(`sent ${path}, ${size} bytes`);
  return { path, sha256, size };
}

/** Prints every event after the first snapshot, each once and in order, over any number of connections. */
async function watch(connection: Connection, experimentId: string): Promise<Experiment> {
  let [resumeToken, last] = ["", -1n];
  let terminal: Experiment | undefined;
  await connection.steadily(async (advanced) => {
    const request = { experimentId, resumeToken, kinds: [], bookmarkInterval: undefined };
    try {
      for await (const { message, eventSeq, resumeToken: token } of connection.stream(runner.watchExperiment, request)) {
        if (message?.$case === "event") {
          if (eventSeq !== last + 1n) throw new Error(`event ${eventSeq} came after event ${last}`);
          console.log(`${eventSeq} ${message.value.kind} ${message.value.runId}`.trimEnd());
        } else if (message?.$case === "snapshot") {
          console.log(`following ${experimentId} after event ${eventSeq}`);
        } else if (message?.$case === "terminal") {
          terminal = message.value;
        }
        [resumeToken, last] = [token, eventSeq];
        advanced();
      }
    } catch (error) {
      if (!(error instanceof CallFailed && error.reason === "RESUME_TOKEN_EXPIRED")) throw error;
      console.error("events were missed, the server does not keep them any more; going on from now");
      resumeToken = "";
    }
    return terminal !== undefined; // a stream may also end because its server leaves: then again, to another
  });
  return terminal!;
}

/** Writes every run, in full, as a line of JSON (the JSON of promptlooper.v1.Run). */
async function exportRuns(connection: Connection, experimentId: string, output: string): Promise<number> {
  const file = openSync(output, "w");
  let [startRunIndex, rows] = [0n, 0];
  await connection.steadily(async (advanced) => {
    for await (const { runs } of connection.stream(runner.exportRuns, { experimentId, startRunIndex }, 600)) {
      for (const run of runs) {
        writeSync(file, `${JSON.stringify(Run.toJSON(run))}\n`);
        startRunIndex = run.runIndex + 1n;
        rows++;
      }
      advanced();
    }
    return true;
  });
  closeSync(file);
  return rows;
}

function printSummary({ experiment, variants, gates }: ExperimentSummary): void {
  const number = (value: number | undefined) => value?.toFixed(3) ?? "-";
  const usd = (nano: bigint, unknownCalls: bigint) => (unknownCalls ? "unknown" : `$${(Number(nano) / 1e9).toFixed(6)}`);
  const table = variants.map((each) => [
    each.label, `${each.runs}`, `${each.failed}`, number(each.score), number(each.passRate),
    `${each.latencyMsP50 ?? "-"}`, usd(each.costNanousd, each.costUnknownCalls),
  ]);
  const lines = [["variant", "runs", "failed", "score", "pass rate", "p50 ms", "cost"], ...table];
  for (const line of lines) {
    const cells = line.map((cell, i) => cell.padEnd(Math.max(...lines.map((each) => each[i]!.length))));
    console.log(cells.join("  ").trimEnd());
  }
  for (const gate of gates) {
    const of = gate.variantId && ` of ${gate.variantId}`;
    console.log(`gate ${gate.name}${of}: wanted ${gate.wanted}, got ${gate.got ?? "-"}: ${gate.passed ? "met" : "missed"}`);
  }
  const { state, counts } = experiment!;
  const name = ExperimentState[state]?.replace("EXPERIMENT_STATE_", "");
  console.log(`${name}: ${counts!.completed} of ${counts!.total} runs completed, ${counts!.failed} failed`);
}

async function main(): Promise<number> {
  const interrupted = new AbortController();
  process.once("SIGINT", () => interrupted.abort());
  let [hint, isStored] = ["", false];
  try {
    const { file, output, requestId, ...options } = readArguments();
    const connection = new Connection(options, interrupted.signal);
    try {
      hint = `the experiment may have been stored and go on: the same command with --request-id ${requestId} follows it`;
      const { experimentId } = await submit(connection, file, requestId);
      hint = `${experimentId} is stored and goes on: the same command with --request-id ${requestId} follows it`;
      isStored = true;
      const ended = await watch(connection, experimentId);
      const { summary } = await connection.call(runner.summarizeExperiment, { experimentId });
      printSummary(summary!);
      console.log(`${await exportRuns(connection, experimentId, output)} rows in ${output}`);
      const isGood = ended.state === ExperimentState.EXPERIMENT_STATE_COMPLETED && ended.counts!.failed === 0n;
      return isGood && summary!.gates.every((gate) => gate.passed) ? 0 : 1;
    } finally {
      connection.close();
    }
  } catch (error) {
    if (interrupted.signal.aborted) {
      console.error(hint);
      return 130;
    }
    const isBadFile = error instanceof Error && "syscall" in error;
    const isWrong = error instanceof CallFailed && error.reason === "INVALID_EXPERIMENT";
    console.error(error instanceof CallFailed ? `${error}` : (error as Error).message);
    if (isStored || (error instanceof CallFailed && error.mayPass)) console.error(hint);
    return isWrong || isBadFile || error instanceof WrongUsage ? 2 : 1;
  }
}

function readArguments() {
  const text = { type: "string" } as const;
  const options = {
    help: { type: "boolean", short: "h" } as const, output: { ...text, short: "o" }, "request-id": text,
    server: text, "token-file": text, "ca-file": text,
  };
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true });
    if (values.help) {
      console.log(USAGE);
      process.exit(0);
    }
    if (positionals.length !== 1) throw new Error("name one experiment file");
    return {
      file: positionals[0]!,
      output: values.output ?? "rows.jsonl",
      requestId: values["request-id"] ?? randomUUID(),
      server: values.server ?? process.env.PROMPTLOOPER_SERVER ?? "127.0.0.1:7051",
      tokenFile: values["token-file"] ?? process.env.PROMPTLOOPER_SERVER_TOKEN_FILE,
      caFile: values["ca-file"] ?? process.env.PROMPTLOOPER_SERVER_CA_FILE,
    };
  } catch (error) {
    throw new WrongUsage(`${(error as Error).message}\n${USAGE}`);
  }
}

process.exitCode = await main();

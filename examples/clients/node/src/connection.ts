// A channel to a Runner: what every call needs, whatever it asks for.
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import { BadRequest, ErrorInfo, PreconditionFailure } from "../gen/google/rpc/error_details.js";
import { Status } from "../gen/google/rpc/status.js";

/** What the user gave cannot be used. */
export class WrongUsage extends Error {}

/** A call failed. `reason` is a name of promptlooper.v1.ErrorReason, empty where no server of ours answered. */
export class CallFailed extends Error {
  reason = "";
  problems: string[] = [];
  /** Paths of the files that the server asks for, with the reason FILES_MISSING. */
  missing: string[] = [];

  constructor(readonly code: grpc.status, details: string, metadata: grpc.Metadata) {
    super(details);
    const [bytes] = metadata.get("grpc-status-details-bin");
    if (!Buffer.isBuffer(bytes)) return;
    for (const { typeUrl, value } of Status.decode(bytes).details) {
      switch (typeUrl.split("/").pop()) {
        case "google.rpc.ErrorInfo":
          this.reason = ErrorInfo.decode(value).reason;
          break;
        case "google.rpc.BadRequest":
          this.problems = BadRequest.decode(value).fieldViolations.map(({ field, description }) =>
            field ? `${field}: ${description}` : description,
          );
          break;
        case "google.rpc.PreconditionFailure":
          this.missing = PreconditionFailure.decode(value)
            .violations.filter((each) => each.type === "FILE")
            .map((each) => each.subject);
          break;
      }
    }
  }

  /** The server cannot be reached now, or leaves: the same call, made again, may succeed. */
  get mayPass(): boolean {
    const { UNAVAILABLE, CANCELLED, INTERNAL } = grpc.status;
    // grpc-js says INTERNAL of some connections that break in the middle of a stream; only a server of ours gives a reason.
    const isBroken = this.code === CANCELLED || (this.code === INTERNAL && this.message.includes("RST_STREAM"));
    return this.code === UNAVAILABLE || (isBroken && !this.reason);
  }

  override toString(): string {
    const what = this.problems.length > 0 ? `\n  ${this.problems.join("\n  ")}` : ` ${this.message}`;
    return `${this.reason || grpc.status[this.code]}:${what}`;
  }
}

type Method<Request, Response> = {
  path: string;
  requestSerialize: (value: Request) => Buffer;
  responseDeserialize: (value: Buffer) => Response;
};

export type Options = { server: string; tokenFile?: string; caFile?: string };

export class Connection {
  private readonly client: grpc.Client;

  constructor(private readonly options: Options, private readonly signal: AbortSignal) {
    const { server, caFile } = options;
    const credentials = caFile
      ? grpc.credentials.createSsl(certificates(caFile))
      : grpc.credentials.createInsecure();
    this.client = new grpc.Client(server, credentials, {
      "grpc.keepalive_time_ms": 30_000, // a server that is frozen is noticed; it allows a ping every 10 s
      "grpc.keepalive_timeout_ms": 10_000,
      "grpc.keepalive_permit_without_calls": 1,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 1_000,
      "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
    });
  }

  close(): void {
    this.client.close();
  }

  /** One answer within `seconds`; a server that is away is asked again, so only for calls that may be repeated. */
  async call<Q, R>(method: Method<Q, R>, request: Q, seconds = 30): Promise<R> {
    let response: R | undefined;
    await this.steadily(async () => {
      response = await new Promise<R>((resolve, reject) => {
        const { path, requestSerialize, responseDeserialize } = method;
        const deadline = { deadline: Date.now() + seconds * 1000 };
        const call = this.client.makeUnaryRequest(
          path, requestSerialize, responseDeserialize, request, this.metadata(), deadline,
          (error, value) => {
            this.signal.removeEventListener("abort", cancel);
            if (error) reject(new CallFailed(error.code, error.details, error.metadata));
            else resolve(value as R);
          },
        );
        const cancel = () => call.cancel();
        this.signal.addEventListener("abort", cancel);
      });
      return true;
    });
    return response as R;
  }

  /** The messages of a stream, which may break at any time. Watches have no deadline. */
  async *stream<Q, R>(method: Method<Q, R>, request: Q, seconds = Infinity): AsyncGenerator<R> {
    const { path, requestSerialize, responseDeserialize } = method;
    const deadline = { deadline: Date.now() + seconds * 1000 };
    const stream = this.client.makeServerStreamRequest(
      path, requestSerialize, responseDeserialize, request, this.metadata(), deadline,
    );
    const cancel = () => stream.cancel();
    this.signal.addEventListener("abort", cancel);
    try {
      yield* stream as AsyncIterable<R>;
    } catch (error) {
      if (!(error instanceof Error && "code" in error && "metadata" in error)) throw error;
      const { code, details, metadata } = error as grpc.ServiceError;
      throw new CallFailed(code, details, metadata);
    } finally {
      this.signal.removeEventListener("abort", cancel);
      stream.cancel();
    }
  }

  /** Makes attempts until one says it is done. Between those that got nowhere it waits, longer each time; after a minute of
   *  them it gives up. An attempt calls `advanced` when it got somewhere. */
  async steadily(attempt: (advanced: () => void) => Promise<boolean>): Promise<void> {
    let [wait, since] = [100, Date.now()];
    const advanced = () => ([wait, since] = [100, Date.now()]);
    for (;;) {
      this.signal.throwIfAborted();
      try {
        if (await attempt(advanced)) return;
      } catch (error) {
        this.signal.throwIfAborted();
        if (!(error instanceof CallFailed && error.mayPass) || Date.now() - since > 60_000) throw error;
        console.error(`no connection (${error.message}); again in ${wait / 1000} s`);
      }
      await sleep(wait * (0.5 + Math.random() / 2), undefined, { signal: this.signal });
      wait = Math.min(wait * 2, 5_000);
    }
  }

  private metadata(): grpc.Metadata {
    const metadata = new grpc.Metadata();
    const { tokenFile } = this.options; // read for each call, since tokens are replaced
    if (tokenFile) metadata.set("authorization", `Bearer ${readFileSync(tokenFile, "utf8").trim()}`);
    return metadata;
  }
}

function certificates(file: string): Buffer {
  const pem = readFileSync(file);
  try {
    new X509Certificate(pem); // grpc-js would take anything, and trust nobody
  } catch {
    throw new WrongUsage(`${file} holds no certificate`);
  }
  return pem;
}

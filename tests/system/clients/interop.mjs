// The cases of gRPC's interop tests that matter to users, called by @grpc/grpc-js: prints one JSON object of outcomes.
// Arguments: a folder whose node_modules has the package, HOST:PORT.
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, address] = process.argv.slice(2);
const grpc = createRequire(join(folder, "package.json"))("@grpc/grpc-js");
const client = new grpc.Client(address, grpc.credentials.createInsecure());
const same = (bytes) => bytes;
const path = (method) => `/promptlooper.testing.Interop/${method}`;
const outcomeOf = (error) => ({ code: grpc.status[error?.code ?? 0], message: error?.details ?? "", reason: error?.metadata });

/** A unary call: how it ended, what came, and the server's metadata. */
function unary(method, request, { metadata = new grpc.Metadata(), deadline, cancelAfter } = {}) {
  return new Promise((resolve) => {
    const headers = {};
    const options = deadline ? { deadline: Date.now() + deadline } : {};
    const call = client.makeUnaryRequest(path(method), same, same, request, metadata, options, (error, response) => {
      const { code, message } = outcomeOf(error);
      const details = error?.metadata.get("grpc-status-details-bin")[0];
      resolve({ code, message, bytes: response?.length ?? null, headers, details: details?.toString("base64") ?? null });
    });
    call.on("metadata", (received) => Object.assign(headers, plain(received)));
    call.on("status", ({ metadata: trailers }) => Object.assign(headers, plain(trailers)));
    if (cancelAfter !== undefined) setTimeout(() => call.cancel(), cancelAfter);
  });
}

const plain = (metadata) =>
  Object.fromEntries(
    Object.keys(metadata.getMap())
      .filter((key) => key.startsWith("x-"))
      .map((key) => [key, metadata.get(key).map((value) => (Buffer.isBuffer(value) ? value.toString("base64") : value))]),
  );

/** A stream in both directions: the sizes that came, and how it ended. With `leaveAfter`, it is cancelled after so many. */
function stream(method, requests, { leaveAfter } = {}) {
  return new Promise((resolve) => {
    const sizes = [];
    const call = client.makeBidiStreamRequest(path(method), same, same);
    call.on("data", (message) => {
      sizes.push(message.length);
      if (sizes.length === leaveAfter) call.cancel();
      else if (sizes.length < requests.length) call.write(requests[sizes.length]);
      else call.end();
    });
    call.on("error", () => {}); // told by status, too
    call.on("status", ({ code, details }) => resolve({ code: grpc.status[code], message: details, sizes }));
    if (requests.length) call.write(requests[0]);
    else call.end();
  });
}

const echoed = new grpc.Metadata();
echoed.set("x-echo-initial", "test_initial_metadata_value");
echoed.set("x-echo-trailing-bin", Buffer.from([0xab, 0xab, 0xab, 0x00, 0xff]));
const sizes = [27182, 8, 1828, 45904].map((size) => Buffer.alloc(size));
const text = Buffer.from("\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n");

console.log(
  JSON.stringify({
    empty_unary: await unary("Echo", Buffer.alloc(0)),
    large_unary: await unary("Large", Buffer.alloc(271828)),
    too_large: await unary("Echo", Buffer.alloc(4 * 1024 * 1024 + 1)),
    ping_pong: await stream("PingPong", sizes),
    empty_stream: await stream("PingPong", []),
    custom_metadata: await unary("Echo", Buffer.alloc(1), { metadata: echoed }),
    unicode_error: await unary("Fail", text),
    unicode_error_in_stream: await stream("FailInStream", [text]),
    deadline: await unary("Wait", Buffer.alloc(0), { deadline: 200 }),
    cancel: await unary("Wait", Buffer.alloc(0), { cancelAfter: 200 }),
    cancel_after_first_response: await stream("PingPong", sizes, { leaveAfter: 1 }),
    unimplemented_method: await unary("NoSuchMethod", Buffer.alloc(0)),
  }),
);
client.close();

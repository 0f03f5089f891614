// A server and a client of quiche (by @matrixai/quic) in one process, for tools/make_captures.py.
import { readFileSync } from "node:fs";
import { randomFillSync, createHmac, randomBytes } from "node:crypto";
import * as quic from "@matrixai/quic";
import Logger, { LogLevel } from "@matrixai/logger";

const logger = new Logger("captures", LogLevel.SILENT);
const cert = readFileSync("cert.pem", "utf8");
const key = readFileSync("key.pem", "utf8");
const ops = {
  randomBytes: async (data) => { randomFillSync(new Uint8Array(data)); },
  sign: async (secret, data) => {
    const mac = createHmac("sha256", Buffer.from(secret)).update(Buffer.from(data)).digest();
    return mac.buffer.slice(mac.byteOffset, mac.byteOffset + mac.byteLength);
  },
  verify: async (secret, data, signature) =>
    createHmac("sha256", Buffer.from(secret)).update(Buffer.from(data)).digest().equals(Buffer.from(signature)),
};
const secret = randomBytes(32);
const server = new quic.QUICServer({
  crypto: { key: secret.buffer.slice(secret.byteOffset, secret.byteOffset + 32), ops },
  config: { key, cert, verifyPeer: false },
  logger,
});
const answers = [];
server.addEventListener(quic.events.EventQUICServerConnection.name, (event) => {
  event.detail.addEventListener(quic.events.EventQUICConnectionStream.name, (opened) => {
    const stream = opened.detail;
    answers.push((async () => {
      let asked = "";
      for await (const piece of stream.readable) asked += new TextDecoder().decode(piece);
      const writer = stream.writable.getWriter();
      await writer.write(new Uint8Array(Number(asked)).fill(113));
      await writer.close();
    })());
  });
});
await server.start({ host: "127.0.0.1", port: 4433 });
const client = await quic.QUICClient.createQUICClient({
  host: "127.0.0.1", port: 4433, localHost: "127.0.0.1",
  crypto: { ops }, config: { verifyPeer: false, logKeys: process.env.SSLKEYLOGFILE }, logger,
});
for (const size of [500, 40000]) {
  const stream = client.connection.newStream();
  const writer = stream.writable.getWriter();
  await writer.write(new TextEncoder().encode(String(size)));
  await writer.close();
  let got = 0;
  for await (const piece of stream.readable) got += piece.length;
  console.log("got", got);
}
await Promise.all(answers);
await client.destroy({ force: true });
await server.stop({ force: true });
process.exit(0);

// A front end's way to events, step for step as its specification's hook takes it: connect with a token, subscribe to
// channels by name before the connection is there, listen by the channel's name. Prints a line of JSON for what happens.
//
// node watch.mjs URL TOKEN OPTIONS REQUEST...   (a request is a channel, or JSON of {channel, after})
import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const [url, token, options, ...requests] = process.argv.slice(2);
const say = (what, value) => console.log(JSON.stringify({ what, value: value ?? null }));

const socket = io(url, { auth: { token }, ...JSON.parse(options) });
socket.on("connect", () => say("connect", socket.io.engine.transport.name));
socket.on("disconnect", (reason) => say("disconnect", reason));
socket.on("connect_error", (error) => say("connect_error", error.message));
socket.on("subscribed", (reply) => say("subscribed", reply));
socket.on("cursor", (cursor) => say("cursor", cursor));
socket.on("subscribe_error", (reply) => say("subscribe_error", reply));
socket.io.engine.on("upgrade", (transport) => say("upgrade", transport.name));
for (const request of requests) {
  const asked = request.startsWith("{") ? JSON.parse(request) : request;
  const channel = asked.channel ?? asked;
  socket.emit("subscribe", asked);
  socket.on(channel, (event) => say(channel, event));
}
const lines = createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const [event, argument] = JSON.parse(line);
  socket.emit(event, argument, (reply) => say("acknowledged", reply));
});
lines.on("close", () => socket.close());

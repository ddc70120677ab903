// The counter on Node and ws, as their users write it: it sends every change to every client.
// node counter.js CERT KEY announce|quiet
"use strict";
const fs = require("fs");
const https = require("https");
let WebSocket;
try {
  WebSocket = require("ws");
} catch {
  WebSocket = require("/usr/share/nodejs/ws"); // Debian's node-ws
}

const [cert, key, mode] = process.argv.slice(2);
const server = https.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key), minVersion: "TLSv1.3" });
const wss = new WebSocket.Server({ server, maxPayload: 512, perMessageDeflate: false });
let value = 0;

const users = () => JSON.stringify({ type: "users", count: wss.clients.size });
const state = () => JSON.stringify({ type: "state", value });

function broadcast(message) {
  for (const client of wss.clients) {
    if (client.readyState === WebSocket.OPEN) client.send(message);
  }
}

wss.on("connection", (ws) => {
  ws.on("error", () => {});
  ws.on("message", (data) => {
    let action;
    try {
      action = JSON.parse(data).action;
    } catch {
      return;
    }
    if (action === "plus") value++;
    else if (action === "minus") value--;
    else return;
    broadcast(state());
  });
  ws.on("close", () => {
    if (mode === "announce") broadcast(users());
  });
  if (mode === "announce") broadcast(users());
  else ws.send(users());
  ws.send(state());
});

server.listen(0, "127.0.0.1", 4096, () => console.log("listening 127.0.0.1:" + server.address().port));

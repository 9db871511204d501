#!/usr/bin/env node
// An agent without LiveKit, Node. Reads "user: …" and "agent: …" lines, ends when all of them are durable.
//   CHAT_HISTORYD_SOCKET=/run/chat-historyd/events.sock node plain_socket.mjs 68:25:dd:ba:39:78 my-session < conversation.txt
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { randomUUID } from 'node:crypto';

const [mac, session] = process.argv.slice(2);
const daemon = connect(process.env.CHAT_HISTORYD_SOCKET ?? '/run/chat-historyd/events.sock');
const send = (line) => daemon.write(JSON.stringify(line) + '\n');
const fail = (why) => { console.error(why); process.exit(1); };
let seq = 0, last = Infinity;

daemon.on('error', (problem) => fail(problem.message));
daemon.on('close', () => fail('the daemon went away: connect again and send what was not acknowledged'));
createInterface({ input: daemon }).on('line', (text) => {
  const answer = JSON.parse(text);
  if (answer.type === 'error') fail(`refused: ${answer.code} ${answer.field ?? ''}`);
  if (answer.type === 'ack' && answer.seq === last) process.exit(0); // everything up to this number is on the disk
});

send({ type: 'session_start', v: 1, mac_address: mac, session_id: session, stream: randomUUID() });
for await (const said of createInterface({ input: process.stdin })) {
  const [, who, text] = said.match(/^(\w+): (.*)$/s) ?? fail(`not "user: …" or "agent: …": ${said}`);
  // with a stream and numbers, nothing is lost or doubled by sending it again after a reconnect
  send({ type: 'message', chat_type: who, content: text, timestamp: Date.now() / 1000, seq: ++seq });
}
last = seq + 1;
send({ type: 'session_end', reason: 'done', seq: last });

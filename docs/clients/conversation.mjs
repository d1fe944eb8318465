// A conversation of two turns through OpenAI's JavaScript client: node conversation.mjs ADDRESS MODEL stream|whole '["...", "..."]'
// Prints one line of JSON, a list of {answer, thinking}. What the protocol promises is asserted on the way.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [address, model, how, asked] = process.argv.slice(2);
const max_tokens = 200;
const client = new OpenAI({ baseURL: `${address}/v1` });

async function whole(messages) {
  const reply = await client.chat.completions.create({ model, messages, max_tokens });
  const { message, finish_reason } = reply.choices[0];
  assert.ok(["stop", "length"].includes(finish_reason));
  assert.ok(reply.usage.completion_tokens > 0);
  return { answer: message.content, thinking: message.reasoning_content ?? "" };
}

async function streamed(messages) {
  const options = { include_usage: true };
  const stream = await client.chat.completions.create({
    model,
    messages,
    max_tokens,
    stream: true,
    stream_options: options,
  });
  const turn = { answer: "", thinking: "" };
  let roles = 0;
  let last;
  for await (const chunk of stream) {
    last = chunk;
    const delta = chunk.choices[0]?.delta ?? {};
    roles += delta.role ? 1 : 0;
    assert.ok(!(delta.content && delta.reasoning_content));
    turn.answer += delta.content ?? "";
    turn.thinking += delta.reasoning_content ?? "";
  }
  assert.equal(roles, 1);
  assert.ok(last.usage.completion_tokens > 0);
  return turn;
}

const messages = [];
const turns = [];
for (const question of JSON.parse(asked)) {
  messages.push({ role: "user", content: question });
  const turn = await (how === "stream" ? streamed : whole)(messages);
  turns.push(turn);
  messages.push({ role: "assistant", content: turn.answer });
}
console.log(JSON.stringify(turns));

// What openai's client makes of the answers: `node openai.mjs SCENE BASE_URL` prints it as one line of JSON.
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const [scene, baseURL] = process.argv.slice(2);
const chat = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 }).chat.completions;

const tools = [
  zodFunction({
    name: "get_weather",
    parameters: z.object({ city: z.string() }),
    function: ({ city }) => `21 degrees in ${city}`,
  }),
  zodFunction({
    name: "get_time",
    parameters: z.object({ zone: z.string() }),
    function: ({ zone }) => `9:00 ${zone}`,
  }),
];
const question = { model: "m", messages: [{ role: "user", content: "How is it in Rome?" }] };
const request = { ...question, tools };
const City = z.object({ name: z.string(), people: z.number() });

const told = ({ message, finish_reason }) => ({
  content: message.content,
  calls: (message.tool_calls ?? []).map((call) => [call.function.name, call.function.arguments]),
  finish: finish_reason,
});

async function run(params) {
  const runner = chat.runTools(params);
  return { answer: await runner.finalContent(), roles: runner.messages.map((message) => message.role) };
}

const scenes = {
  create: async () => told((await chat.create(request)).choices[0]),

  async stream() {
    const seen = { text: "", pieces: "", done: [] };
    const stream = chat.stream(request);
    stream.on("content.delta", ({ delta }) => (seen.text += delta));
    stream.on("tool_calls.function.arguments.delta", (event) => (seen.pieces += event.arguments_delta));
    stream.on("tool_calls.function.arguments.done", (event) => seen.done.push([event.index, event.parsed_arguments]));
    return { ...told((await stream.finalChatCompletion()).choices[0]), ...seen };
  },

  runTools: () => run(request),
  runToolsStreamed: () => run({ ...request, stream: true }),

  async parseCalls() {
    const { message } = (await chat.parse(request)).choices[0];
    return message.tool_calls.map((call) => call.function.parsed_arguments);
  },

  async parseAnswer() {
    const { message } = (await chat.parse({ ...question, response_format: zodResponseFormat(City, "city") })).choices[0];
    return message.parsed;
  },
};

try {
  console.log(JSON.stringify(await scenes[scene]()));
} catch (error) {
  console.log(JSON.stringify({ error: error.constructor.name, message: error.message }));
}

// What Vercel's AI SDK makes of the answers: `node ai.mjs SCENE BASE_URL` prints it as one line of JSON.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [scene, baseURL] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: "florette",
  baseURL,
  includeUsage: true,
  supportsStructuredOutputs: true,
});

const tools = {
  get_weather: tool({
    description: "Tell the weather in a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `21 degrees in ${city}`,
  }),
  get_time: tool({
    description: "Tell the time in a zone.",
    inputSchema: z.object({ zone: z.string() }),
    execute: async ({ zone }) => `9:00 ${zone}`,
  }),
};
const question = { model: provider("m"), prompt: "How is it in Rome?", maxRetries: 0 };
const request = { ...question, tools, stopWhen: stepCountIs(3) };
const output = Output.object({ schema: z.object({ name: z.string(), people: z.number() }) });

const step = ({ text, toolCalls, finishReason }) => ({
  text,
  calls: toolCalls.map((call) => [call.toolName, call.input, call.invalid ?? false]),
  finish: finishReason,
});
const told = async (result) => ({
  steps: (await result.steps).map(step),
  tokens: (await result.totalUsage).totalTokens,
});

const scenes = {
  generateText: async () => told(await generateText(request)),

  async streamText() {
    const result = streamText({ ...request, onError: () => {} });
    let pieces = "";
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      if (part.type === "tool-input-delta") pieces += part.delta;
    }
    return { ...(await told(result)), pieces };
  },

  generateOutput: async () => (await generateText({ ...question, output })).output,

  async streamOutput() {
    const result = streamText({ ...question, output, onError: () => {} });
    await result.consumeStream();
    return result.output;
  },
};

try {
  console.log(JSON.stringify(await scenes[scene]()));
} catch (error) {
  console.log(JSON.stringify({ error: error.name, message: error.message }));
}

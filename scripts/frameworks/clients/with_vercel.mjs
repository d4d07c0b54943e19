// The Vercel AI SDK: texts, streams, objects and tools, by three of its providers.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.BASE_URL;
const model = process.env.MODEL;
const prompt = "Tell me a story about Mia and a red boat.";
const openai = createOpenAI({ baseURL, apiKey: "none" });
const models = {
  compatible: createOpenAICompatible({
    name: "service", baseURL, apiKey: "none", supportsStructuredOutputs: true, includeUsage: true,
  })(model),
  chat: openai.chat(model),
  responses: openai.responses(model),
  messages: createAnthropic({ baseURL, apiKey: "none" })(model),
};
const schema = z.object({ hero: z.enum(["Mia", "Tom"]), pages: z.union([z.literal(1), z.literal(2)]) });
const tools = {
  paint: tool({
    description: "Paints the boat.",
    inputSchema: z.object({ color: z.enum(["red", "blue"]) }),
    execute: async ({ color }) => `painted ${color}`,
  }),
};
const common = { maxRetries: 0, maxOutputTokens: 800, temperature: 0 };

const checks = [];
const check = (name, needs, run) => checks.push({ name, needs, run });
const assert = (value, what) => {
  if (!value) throw Object.assign(new Error(what), { isAssertion: true });
};

for (const [name, target] of Object.entries(models)) {
  check(`${name}, generateText`, [], async () => {
    const { text, usage } = await generateText({ model: target, prompt, system: "Be brief.", ...common });
    assert(text && usage.outputTokens > 0, "no text or no usage");
  });
  check(`${name}, streamText`, [], async () => {
    let text = "";
    for await (const part of streamText({ model: target, prompt, ...common }).fullStream) {
      if (part.type === "error") throw part.error;
      if (part.type === "text-delta") text += part.text;
    }
    assert(text, "no text");
  });
  check(`${name}, generateObject`, ["json"], async () => {
    const { object } = await generateObject({ model: target, prompt, schema, ...common });
    assert(["Mia", "Tom"].includes(object.hero), "no hero");
  });
  check(`${name}, streamObject`, ["json"], async () => {
    let failure;
    const result = streamObject({
      model: target, prompt, schema, ...common, onError: ({ error }) => { failure = error; },
    });
    let last;
    for await (const part of result.partialObjectStream) last = part;
    if (failure) throw failure;
    assert(last?.hero, "no hero");
  });
  check(`${name}, tools, auto`, ["tools"], async () => {
    await generateText({ model: target, prompt, tools, stopWhen: stepCountIs(2), ...common });
  });
  check(`${name}, tools, required`, ["json"], async () => {
    const { toolResults } = await generateText({
      model: target, prompt, tools, toolChoice: "required", ...common,
    });
    assert(toolResults[0]?.output.startsWith("painted"), "no result");
  });
  check(`${name}, tools, required, streamed`, ["json"], async () => {
    let called = false;
    const result = streamText({ model: target, prompt, tools, toolChoice: "required", ...common });
    for await (const part of result.fullStream) {
      if (part.type === "error") throw part.error;
      called ||= part.type === "tool-result";
    }
    assert(called, "no result");
  });
  check(`${name}, tools, then an answer`, ["json", "tools"], async () => {
    const { steps } = await generateText({
      model: target, prompt, tools, stopWhen: stepCountIs(2), ...common,
      prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber ? "none" : "required" }),
    });
    assert(steps.length === 2, `${steps.length} steps`);
  });
}

const only = process.argv.slice(2);
for (const { name, needs, run } of checks) {
  if (only.length && !only.some((part) => name.includes(part))) continue;
  let outcome = "passed", detail = "";
  try {
    await run();
  } catch (error) {
    console.error(name, error);
    const status = error.statusCode ?? error.cause?.statusCode ?? error.lastError?.statusCode;
    const unbound = error.isAssertion || /NoObject|TypeValidation|JSONParse|InvalidToolInput|ToolChoiceViolation/.test(error.name);
    outcome = status === 400 ? "refused" : unbound ? "unbound" : "failed";
    detail = `${error.name}: ${error.message} ${error.responseBody ?? ""}`.slice(0, 400);
  }
  console.log("outcome: " + JSON.stringify({ check: name, needs, outcome, detail }));
}
process.exit(0);
